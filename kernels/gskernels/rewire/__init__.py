"""Dynamic sparse training: from time to time each group drops its weakest inputs and grows others; fan-in stays K.

Read a rewiring in this order: `score_slots`, a drop rule, `grow`, `reset_slots`. `Rewirer` does all four by a `Schedule`::

    loss.backward()
    optimizer.step()
    if rewirer.due(step):
        log(rewirer.apply(step, x, grad_out))
    optimizer.zero_grad()

Sources: SET (Mocanu et al. 2018, random growth), RigL (Evci et al. 2020, growth by gradient, cosine-decayed fraction),
SRigL (Lasby et al. 2023, constant fan-in).
"""

from gskernels.rewire.growth import GROWTHS, gradient_norms, grow
from gskernels.rewire.rewirer import Rewirer, Telemetry
from gskernels.rewire.schedule import Schedule
from gskernels.rewire.slots import DROPS, SCORES, drop_below, drop_global, drop_per_group, score_slots
from gskernels.rewire.state import reset_slots, resettable_state

__all__ = [
    "DROPS", "GROWTHS", "SCORES", "Rewirer", "Schedule", "Telemetry", "drop_below", "drop_global", "drop_per_group",
    "gradient_norms", "grow", "reset_slots", "resettable_state", "score_slots",
]  # fmt: skip
