_base_ = [
    './_base_/models/unet_dmf.py', './_base_/datasets/busc.py',
    './_base_/schedules/schedule_100e.py', './_base_/default_runtime.py'
]
