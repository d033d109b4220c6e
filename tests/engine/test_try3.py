import time, torch, pytest
from glipv2_d2 import GLIPv2Trainer
def test_x(train_cfg):
    t=time.time()
    tr=GLIPv2Trainer(train_cfg); tr.resume_or_load(False); print("built",time.time()-t)
    tr.train(); print("done", time.time()-t, tr._last_eval_results)
