# mmseg's own U-Net (64 filters) with its auxiliary head; each head has a memory of its own.
# A path where 'mmseg::_base_/...' would do, which the onedl forks do not resolve.
_base_ = [
    __import__('mmseg').__path__[0] + '/.mim/configs/_base_/models/fcn_unet_s5-d16.py',
    './_base_/datasets/busi.py',
    './_base_/schedules/schedule_100e.py', './_base_/default_runtime.py'
]
norm_cfg = dict(type='BN', requires_grad=True)
dmf_loss = dict(
    _delete_=True,
    type='DMFLoss',
    losses=['ce', 'iou', 'dice'],
    auxiliary='cb_dice',
    weighting='variance')
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(norm_cfg=norm_cfg, loss_decode=dmf_loss),
    auxiliary_head=dict(
        norm_cfg=norm_cfg, loss_decode=dict(loss_weight=0.4, **dmf_loss)),
    test_cfg=dict(_delete_=True, mode='whole'))
