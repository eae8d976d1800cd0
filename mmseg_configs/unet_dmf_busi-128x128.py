# The paper's plain U-Net, 32 filters, at 128x128. Every cell of its grid is this file with
#   --cfg-options model.decode_head.loss_decode.weighting=mad \
#                 model.decode_head.loss_decode.auxiliary=tversky
# weighting: variance, mad, bayesian, fixed; auxiliary: cb_dice, tversky, focal, None.
_base_ = [
    './_base_/models/unet_dmf.py', './_base_/datasets/busi.py',
    './_base_/schedules/schedule_100e.py', './_base_/default_runtime.py'
]
