# SegFormer-B0 from random weights, with AdamW as its authors train it.
# A path where 'mmseg::_base_/...' would do, which the onedl forks do not resolve.
_base_ = [
    __import__('mmseg').__path__[0] + '/.mim/configs/_base_/models/segformer_mit-b0.py',
    './_base_/datasets/busi.py',
    './_base_/schedules/schedule_100e.py', './_base_/default_runtime.py'
]
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    decode_head=dict(
        num_classes=2,
        norm_cfg=norm_cfg,
        loss_decode=dict(
            _delete_=True,
            type='DMFLoss',
            losses=['ce', 'iou', 'dice'],
            auxiliary='cb_dice',
            weighting='variance')))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-4, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(
            pos_block=dict(decay_mult=0.),
            norm=dict(decay_mult=0.),
            head=dict(lr_mult=10.),
            # learned weights (weighting='uncertainty') are part of the head
            log_variance=dict(lr_mult=1., decay_mult=0.))))
