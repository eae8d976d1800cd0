# The paper's baseline: the same terms with equal, fixed weights and no auxiliary loss.
_base_ = './unet_dmf_busi-128x128.py'
model = dict(decode_head=dict(loss_decode=dict(weighting='fixed', auxiliary=None)))
