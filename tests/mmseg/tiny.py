# Five lines of a user, in any folder: our U-Net, made small for a test on a CPU.
_base_ = "{{$DMF_CONFIGS:set_DMF_CONFIGS}}/unet_dmf_busi-128x128.py"
data_root = "{{$DMF_TEST_DATA:data}}/BUSI"
loader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
train_dataloader = dict(
    batch_size=4, dataset=dict(indices=12), **{k: v for k, v in loader.items() if k != "dataset"}
)
train_dataloader["dataset"]["data_root"] = data_root
val_dataloader = loader
test_dataloader = loader
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(base_channels=4),
    decode_head=dict(in_channels=4, channels=4, loss_decode=dict(memory_size=8, min_history=3)),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="Resize", scale=(64, 64), keep_ratio=False),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="PackSegInputs"),
]
train_dataloader["dataset"]["pipeline"] = train_pipeline
optim_wrapper = dict(optimizer=dict(lr=0.01))
train_cfg = dict(max_epochs=4, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=-1), logger=dict(interval=1))
env_cfg = dict(cudnn_benchmark=False)
log_processor = dict(window_size=1)
randomness = dict(seed=0)
