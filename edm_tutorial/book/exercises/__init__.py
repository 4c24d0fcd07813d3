"""The answers to the book's exercises: `exercises.check("3.2", answer)`."""

from .checking import check as check
from .verdict import Verdict as Verdict
