"""Why a case takes the time it takes: profiles, kept beside the run that timed it.

    <run>/profiles/<implementation>-<pass>-<key>.json           a `model.Profile`
    <run>/profiles/<implementation>-<pass>-<key>.trace.json.gz  Chrome trace, for ui.perfetto.dev or chrome://tracing
    <run>/profiles/<implementation>-<pass>-<key>.svg            clock, power, temperature and memory over time

`collect` starts what measures (`runner`, alone or under Nsight Compute); `breakdown`, `ncu`, `occupancy` and `verdict`
are pure functions of what came back. Reading profiles (`store`) imports no torch.
"""
