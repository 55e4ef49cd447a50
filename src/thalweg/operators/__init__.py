"""Symmetric operators that are only ever multiplied with vectors."""

from thalweg.operators.base import Operator as Operator
from thalweg.operators.base import from_dense as from_dense
from thalweg.operators.base import from_function as from_function
from thalweg.operators.hessian import HessianOperator as HessianOperator
from thalweg.operators.hessian import hessian as hessian
from thalweg.operators.preconditioned import preconditioned as preconditioned

__all__ = ["HessianOperator", "Operator", "from_dense", "from_function", "hessian", "preconditioned"]
