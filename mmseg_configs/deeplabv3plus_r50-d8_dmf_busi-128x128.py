# DeepLabV3+ from random weights; for a pretrained backbone set
# model.pretrained='open-mmlab://resnet50_v1c'.
# A path where 'mmseg::_base_/...' would do, which the onedl forks do not resolve.
_base_ = [
    __import__('mmseg').__path__[0] + '/.mim/configs/_base_/models/deeplabv3plus_r50-d8.py',
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
    pretrained=None,
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(num_classes=2, norm_cfg=norm_cfg, loss_decode=dmf_loss),
    auxiliary_head=dict(
        num_classes=2, norm_cfg=norm_cfg, loss_decode=dict(loss_weight=0.4, **dmf_loss)))
