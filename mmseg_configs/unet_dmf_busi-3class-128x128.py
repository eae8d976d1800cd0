# Background, benign, malignant: for data converted with
#   dmf convert busi SRC --to mmseg --labels benign-malignant
# The data set reads its classes from the converted folder; the model has to be told their number.
_base_ = './unet_dmf_busi-128x128.py'
model = dict(decode_head=dict(num_classes=3))
