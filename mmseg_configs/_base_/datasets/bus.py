# BUS as `dmf convert bus SRC --to mmseg` writes it to data/BUS.
_base_ = './busi.py'
data_root = 'data/BUS'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
