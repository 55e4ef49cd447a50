"""Symmetric operators that are only ever multiplied with vectors, and the doctor who examines them."""

from thalweg.operators.base import Operator as Operator
from thalweg.operators.base import from_dense as from_dense
from thalweg.operators.base import from_function as from_function
from thalweg.operators.diagnosis import Check as Check
from thalweg.operators.diagnosis import Diagnosis as Diagnosis
from thalweg.operators.hessian import HessianOperator as HessianOperator
from thalweg.operators.hessian import hessian as hessian
from thalweg.operators.preconditioned import preconditioned as preconditioned
from thalweg.operators.verify import doctor as doctor

__all__ = [
    "Check",
    "Diagnosis",
    "HessianOperator",
    "Operator",
    "doctor",
    "from_dense",
    "from_function",
    "hessian",
    "preconditioned",
]
