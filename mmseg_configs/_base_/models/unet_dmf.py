# The paper's plain U-Net: 32 filters, no dropout; variance weighting and CB-Dice, the paper's best.
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(128, 128)),
    backbone=dict(
        type='UNet',
        in_channels=3,
        base_channels=32,
        num_stages=5,
        strides=(1, 1, 1, 1, 1),
        enc_num_convs=(2, 2, 2, 2, 2),
        dec_num_convs=(2, 2, 2, 2),
        downsamples=(True, True, True, True),
        enc_dilations=(1, 1, 1, 1, 1),
        dec_dilations=(1, 1, 1, 1),
        norm_cfg=norm_cfg,
        act_cfg=dict(type='ReLU'),
        upsample_cfg=dict(type='InterpConv'),
        norm_eval=False),
    decode_head=dict(
        type='FCNHead',
        in_channels=32,
        in_index=4,
        channels=32,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=2,
        norm_cfg=norm_cfg,
        align_corners=False,
        # Keras' default, as in the paper's code. mmseg's own, normal with std 0.01 on top of a ReLU,
        # can leave every pixel just below one half for ten epochs and more: no lesion at all.
        init_cfg=dict(
            type='Xavier', distribution='uniform', override=dict(name='conv_seg')),
        loss_decode=dict(
            type='DMFLoss',
            losses=['ce', 'iou', 'dice'],
            auxiliary='cb_dice',
            weighting='variance')),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
