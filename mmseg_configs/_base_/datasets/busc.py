# BUSC as `dmf convert busc SRC --to mmseg` writes it to data/BUSC.
_base_ = './busi.py'
data_root = 'data/BUSC'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
