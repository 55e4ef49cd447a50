"""Symmetric operators that are only ever multiplied with vectors, and the doctor who examines them."""

from thalweg.operators.adapters import curvlinops_arguments as curvlinops_arguments
from thalweg.operators.adapters import from_curvlinops as from_curvlinops
from thalweg.operators.adapters import from_scipy as from_scipy
from thalweg.operators.adapters import to_curvlinops as to_curvlinops
from thalweg.operators.base import Operator as Operator
from thalweg.operators.base import from_dense as from_dense
from thalweg.operators.base import from_function as from_function
from thalweg.operators.diagnosis import Check as Check
from thalweg.operators.diagnosis import Diagnosis as Diagnosis
from thalweg.operators.fisher import empirical_fisher as empirical_fisher
from thalweg.operators.gauss_newton import gauss_newton as gauss_newton
from thalweg.operators.hessian import HessianOperator as HessianOperator
from thalweg.operators.hessian import hessian as hessian
from thalweg.operators.preconditioned import preconditioned as preconditioned
from thalweg.operators.third import ThirdDerivative as ThirdDerivative
from thalweg.operators.third import third_derivative as third_derivative
from thalweg.operators.verify import doctor as doctor

__all__ = [
    "Check",
    "Diagnosis",
    "HessianOperator",
    "Operator",
    "ThirdDerivative",
    "curvlinops_arguments",
    "doctor",
    "empirical_fisher",
    "from_curvlinops",
    "from_dense",
    "from_function",
    "from_scipy",
    "gauss_newton",
    "hessian",
    "preconditioned",
    "third_derivative",
    "to_curvlinops",
]
