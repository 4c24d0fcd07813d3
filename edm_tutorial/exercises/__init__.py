"""The answers to the book's exercises: `exercises.check("3.2", answer)`."""

from edm_tutorial.exercises.checking import check as check
from edm_tutorial.exercises.verdict import Verdict as Verdict
