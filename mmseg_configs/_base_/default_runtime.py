# What every DMF training needs: the plug-in, its hook, and a log of its weights. EpochSeedHook makes a
# resumed training draw the random numbers of the uninterrupted one.
default_scope = 'mmseg'
custom_imports = dict(imports=['dmf_plugins.mmseg'], allow_failed_imports=False)
custom_hooks = [dict(type='DMFHook'), dict(type='EpochSeedHook')]
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
tta_model = dict(type='SegTTAModel')
log_processor = dict(by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
