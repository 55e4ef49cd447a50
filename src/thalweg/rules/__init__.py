"""Update rules as pure functions, schedules, and where they become unstable."""

from thalweg.rules.adaptive import Adam as Adam
from thalweg.rules.adaptive import AdamW as AdamW
from thalweg.rules.adaptive import RMSProp as RMSProp
from thalweg.rules.adaptive import ScalarRMSProp as ScalarRMSProp
from thalweg.rules.base import Rule as Rule
from thalweg.rules.base import State as State
from thalweg.rules.base import effective_hessian as effective_hessian
from thalweg.rules.descent import GradientDescent as GradientDescent
from thalweg.rules.descent import HeavyBall as HeavyBall
from thalweg.rules.descent import Nesterov as Nesterov
from thalweg.rules.direction import update_direction as update_direction
from thalweg.rules.edge import Edge as Edge
from thalweg.rules.edge import edge as edge
from thalweg.rules.schedules import Constant as Constant
from thalweg.rules.schedules import Cosine as Cosine
from thalweg.rules.schedules import Schedule as Schedule
from thalweg.rules.schedules import Step as Step
from thalweg.rules.schedules import Warmup as Warmup
from thalweg.rules.torch_bridge import from_torch as from_torch
from thalweg.rules.torch_bridge import state_from_torch as state_from_torch

__all__ = [
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Edge",
    "GradientDescent",
    "HeavyBall",
    "Nesterov",
    "RMSProp",
    "Rule",
    "ScalarRMSProp",
    "Schedule",
    "State",
    "Step",
    "Warmup",
    "edge",
    "effective_hessian",
    "from_torch",
    "state_from_torch",
    "update_direction",
]
