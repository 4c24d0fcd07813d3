"""What is looked at before a fit: every fault of the data has its message or its warning."""

import re
import warnings

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from edm_tutorial import sbi
from edm_tutorial.sbi import simulations
from edm_tutorial.sbi.simulations import checked
from edm_tutorial.sbi.surprise import FEW_VALUES, DependentParameters
from edm_tutorial.sbi.transforms import bounds


def pairs(n=300, d=2, k=3):
    rng = np.random.default_rng(1)
    theta = rng.normal(size=(n, d))
    return theta, theta @ rng.normal(size=(d, k)) + rng.normal(size=(n, k))


def look(theta, x, support=None, *, structured=False, invalid="raise"):
    return checked(theta, x, support, structured=structured, invalid=invalid)


@pytest.fixture(autouse=True)
def silent():
    """A warning that no test waits for is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_fifty_simulations_are_enough():
    assert len(look(*pairs(50)).theta) == 50
    with pytest.raises(ValueError, match="at least 50 simulations, got 49"):
        look(*pairs(49))


def test_five_simulations_on_either_side_of_the_split_are_enough():
    """A quarter of twenty."""
    given = look(*pairs(60))
    first = lambda n: given._replace(theta=given.theta[:n], x=given.x[:n], group=np.arange(n))
    assert [len(side) for side in first(20).split(jr.key(0))] == [15, 5]
    with pytest.raises(ValueError, match="only 19 distinct simulations among 19"):
        first(19).split(jr.key(0))


@pytest.mark.parametrize("again, grouped", [(10, False), (11, True)])
def test_parameters_of_which_a_tenth_occur_again_are_still_equal_by_chance(again, grouped):
    theta, x = pairs(100 + again)
    theta[100:] = theta[:again]
    assert (look(theta, x).group[100] == 0) == grouped


def test_an_offset_is_taken_off_beyond_a_thousandth_of_a_width(monkeypatch):
    """With powers of two: at 8,192 widths float32 has steps of 2^-10 of one."""
    monkeypatch.setattr(simulations, "float_dtype", lambda array: np.float32)
    monkeypatch.setattr(simulations, "DIGITS", 2.0**-10)
    rows = np.array([[8191.0, 8192.0], [8193.0, 8194.0]])
    np.testing.assert_array_equal(simulations._offset(rows, axis=0), [0, 8193])
    np.testing.assert_array_equal(simulations._offset(-rows, axis=0), [0, -8193])


def test_the_largest_float_is_not_too_large_nor_the_smallest_spread_too_small():
    info = np.finfo(np.float32)
    most, widest, least = float(info.max), 1e-3 * float(info.max), 1e3 * float(info.tiny)
    less = lambda value: simulations.less_offset("theta", np.array([value]), (), np.float32)
    assert np.isfinite(less(-most)).all() and np.isinf(less(np.inf)).all()
    narrow = lambda a: simulations._narrowed("theta", np.array([[-a], [a]]), np.float32)
    for a in (widest, least, 0.0):
        assert narrow(a).dtype == np.float32
    for refused in (lambda: narrow(1.001 * widest), lambda: narrow(0.999 * least)):
        with pytest.raises(ValueError, match=r"varies too little for .* in columns \[0\]"):
            refused()
    with pytest.raises(ValueError, match="theta is too large for"):
        less(1.001 * most)


def test_good_simulations_pass_in_silence():
    theta, x = pairs()
    given = look(theta.astype(np.float32), x.astype(np.float32))
    np.testing.assert_array_equal(given.theta, theta.astype(np.float32))
    assert given.theta_offset == () and given.x_offset == ()
    np.testing.assert_array_equal(given.group, np.arange(300))


@pytest.mark.parametrize("row", [0, 1, 17, 299])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["theta", "x"])
def test_a_failed_simulation_is_named_wherever_it_is(row, value, which):
    theta, x = pairs()
    {"theta": theta, "x": x}[which][row, 1] = value
    told = rf"{which} is not finite in 1 of 300 simulations \(first in row {row}\)"
    with pytest.raises(ValueError, match=told):
        look(theta, x)
    with pytest.warns(sbi.DroppedSimulations, match="conditioned on success"):
        given = look(theta, x, invalid="drop")
    np.testing.assert_array_equal(given.theta, np.delete(theta, row, axis=0))


def test_missing_entries_of_structured_observations_have_a_recipe(rng):
    theta, _ = pairs(100)
    x = rng.normal(size=(100, 5, 2))
    x[7, 3, 0] = np.nan
    with pytest.raises(ValueError, match="1 where an entry is present"):
        look(theta, x, structured=True)


def test_words_for_invalid():
    with pytest.raises(ValueError, match='"raise" or "drop", got \'ignore\''):
        look(*pairs(), invalid="ignore")


def test_equal_rows_are_on_one_side_of_the_split(rng):
    theta, x = pairs(60)
    index = rng.integers(0, 60, 600)
    with pytest.warns(sbi.DuplicatedSimulations, match="distinct"):
        given = look(theta[index], x[index])
    kept, held = given.split(jr.key(0))
    assert not set(index[kept]) & set(index[held])
    assert 100 <= len(held) < 150 and len(kept) + len(held) == 600
    assert sorted([*kept, *held]) == list(range(600))


@pytest.mark.parametrize("which", ["theta", "x"])
def test_what_varies_in_one_simulation_only_is_trained_on(which, rng):
    """A column that is constant in training has no scale; the others are split as before."""
    plain = {"theta": rng.normal(size=(300, 2)), "x": rng.normal(size=(300, 3))}
    kept, held = look(*plain.values()).split(jr.key(0))
    for row in (held[0], kept[0]):
        count = np.zeros((300, 1))
        count[row] = 1.0
        given = plain | {which: np.column_stack([plain[which], count])}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sbi.DiscreteParameter)
            now_kept, now_held = look(*given.values()).split(jr.key(0))
        assert row in now_kept
        assert set(now_held) == set(held) - {row}
        assert sorted([*now_kept, *now_held]) == list(range(300))


def test_distinct_rows_are_split_by_chance():
    given = look(*pairs(1000))
    kept, held = given.split(jr.key(0))
    other, _ = given.split(jr.key(1))
    assert len(held) == 100 and len(set(kept)) == 900 and set(kept) != set(other)


@pytest.mark.parametrize("values", [(0.0, 1.0), (0.0, 1.0, 2.0), tuple(range(FEW_VALUES))])
def test_a_discrete_parameter_warns(values, rng):
    theta, x = pairs()
    theta[:, 0] = rng.choice(values, 300)
    with pytest.warns(sbi.DiscreteParameter, match=r"theta\[:, 0\] takes only"):
        look(theta, x)


def test_a_parameter_of_many_values_or_of_few_rows_is_not_discrete():
    """More than 20, or a tenth as many as rows; a value that 5 % of the rows have is no spike."""
    for n, values in ((300, 21), (200, 20)):
        theta, x = pairs(n)
        theta[:, 0] = np.resize(np.arange(float(values)), n)
        look(theta, x)
    theta, x = pairs()
    theta[:15, 1] = 0.5
    look(theta, x)
    theta[15, 1] = 0.5
    with pytest.warns(sbi.DiscreteParameter, match=r"theta\[:, 1\] is 0.5 in 5% of the rows"):
        look(theta, x)


@pytest.mark.parametrize("decades", [4.0, 6.0, 9.0])
def test_a_parameter_over_decades_warns_with_the_line_to_write(decades, rng):
    theta, x = pairs(2000)
    theta[:, 1] = 10 ** rng.uniform(-decades / 2, decades / 2, 2000)
    with pytest.warns(sbi.WideScales, match=r"fit np\.log\(theta\[:, 1\]\)"):
        look(theta, x)


@pytest.mark.parametrize(("law", "shape"), [("gamma", 1), ("gamma", 3), ("lognorm", 0.5)])
def test_ordinary_positive_parameters_do_not_warn(law, shape, rng):
    theta, x = pairs(2000)
    theta[:, 1] = getattr(stats, law)(shape).rvs(2000, random_state=rng)
    look(theta, x)


def test_counts_do_not_warn(rng):
    """The infected of an epidemic: mostly none, seldom hundreds."""
    theta, x = pairs(2000)
    x[:, 0] = rng.poisson(300 * rng.beta(0.05, 1.0, 2000))
    look(theta, x)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
def test_outliers_warn(share, rng):
    theta, x = pairs(2000)
    bad = rng.random(2000) < share
    x[bad, 2] = 1e4 * rng.standard_cauchy(bad.sum())
    with pytest.warns(sbi.WideScales, match=r"fit np\.clip\(x\[:, 2\]"):
        look(theta, x)


def test_transposed_support_warns():
    rng = np.random.default_rng(2)
    theta = np.stack([rng.uniform(-1, 1, 300), rng.uniform(-0.5, 0.7, 300)], axis=1)
    x = theta + 0.1 * rng.normal(size=(300, 2))
    with pytest.warns(sbi.SupportOrder, match="transpose"), pytest.raises(ValueError, match="low"):
        look(theta, x, [(-1.0, 1.0), (-0.5, 0.7)])
    theta = rng.uniform((-1, 4), (1, 6), (300, 2))
    with pytest.warns(sbi.SupportOrder):  # in which they lie, too
        look(theta, x, [(-1.0, 1.0), (4.0, 6.0)])
    look(theta, x, ((-1.0, 4.0), (1.0, 6.0)))


def test_none_is_no_bound():
    theta, x = pairs()
    theta = np.abs(theta)
    for support in ((np.zeros(2), None), ([0, 0], [None, None]), (np.zeros(2), np.full(2, np.inf))):
        box = look(theta, x, support).bounds
        np.testing.assert_array_equal(box.low, 0)
        np.testing.assert_array_equal(box.high, np.inf)


def test_an_offset_beyond_float32_is_taken_off_in_float64(monkeypatch):
    """Under float32 as the working dtype, which the shape of the spread must survive."""
    for module in (simulations, bounds):
        monkeypatch.setattr(module, "float_dtype", lambda array: np.float32)
    theta, x = pairs()
    given = look(theta + [2_459_000.5, 0.0], x + [0.0, 1e8, 0.0], ([2_458_900.0, -9], None))
    assert given.theta.dtype == given.x.dtype == np.float32
    np.testing.assert_allclose(given.theta + given.theta_offset, theta + [2_459_000.5, 0.0])
    np.testing.assert_allclose(given.theta[:, 0].std(), theta[:, 0].std(), rtol=1e-5)
    np.testing.assert_allclose(given.x[:, 1].std(), x[:, 1].std(), rtol=1e-5)
    assert given.theta_offset[1] == 0 and given.x_offset[::2] == (0, 0)
    low = np.asarray(given.bounds.low, float) + given.theta_offset
    np.testing.assert_allclose(low, [2_458_900.0, -9], rtol=1e-7)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_float_is_taken(dtype):
    theta, x = pairs()
    given = look(theta.astype(dtype), x.astype(dtype))
    assert given.theta.dtype == (np.float64 if dtype == np.float64 else np.float32)


def test_what_is_no_float_is_refused_by_name():
    theta, x = pairs()
    with pytest.raises(ValueError, match=r"theta must be a floating-point array, got int64: conv"):
        look(theta.astype(int), x)
    with pytest.raises(ValueError, match="x must be a floating-point array, got object"):
        look(theta, np.array([{"a": 1}] * 300, object))


def test_the_fingerprint_tells_simulations_apart():
    theta, x = pairs()
    kept = np.arange(40)
    one = look(theta, x).fingerprint(kept)
    assert one == look(theta, x).fingerprint(kept.copy())
    assert one != look(theta[::-1], x[::-1]).fingerprint(kept)
    assert one != look(theta, x * 1.0000001).fingerprint(kept)
    assert one != look(theta, x).fingerprint(kept + 1)


def test_masked_entries_are_missing_entries():
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(60, 2))
    x = np.ma.masked_array(theta + 1, mask=np.zeros((60, 2), bool))
    given = {"structured": False, "invalid": "raise"}
    np.testing.assert_array_equal(checked(theta, x, None, **given).x, theta + 1)
    x[7, 1] = np.ma.masked
    with pytest.raises(ValueError, match=r"x is not finite in 1 of 60 .*row 7.*a column"):
        checked(theta, x, None, **given)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble, "list"])
def test_simulations_of_any_precision(kind):
    theta = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float16).astype(float)
    given = theta.tolist() if kind == "list" else theta.astype(kind)
    got = checked(given, given, None, structured=False, invalid="raise")
    assert got.theta.dtype in (np.float32, np.float64)
    np.testing.assert_allclose(got.theta, theta, rtol=1e-3)  # eleven bits of float16


@pytest.mark.parametrize(
    "support", [3.0, (-9.0, 9.0), np.float64(1), [(0, 1)], ([-9] * 3, [9] * 3)]
)
def test_a_support_that_is_no_pair_of_vectors_is_refused_by_name(support):
    theta = np.random.default_rng(0).normal(size=(60, 2))
    with pytest.raises(ValueError, match="prior_support must be"):
        checked(theta, theta, support, structured=False, invalid="raise")


@pytest.mark.parametrize("support", [(None, [9, 9]), ([-9, None], None), ([-9, -9], [np.inf, 9])])
def test_a_support_may_be_open(support):
    theta = np.random.default_rng(0).normal(size=(60, 2))
    bounds = checked(theta, theta, support, structured=False, invalid="raise").bounds
    assert bounds.contains(jnp.zeros(2))


# Faults of the data that ended elsewhere, or nowhere


def test_columns_that_are_constant_but_for_a_row_are_named(rng):
    with pytest.raises(ValueError, match="x in columns .* constant but for a row"):
        look(rng.normal(size=(300, 1)), np.eye(300)).split(jr.key(0))


def test_too_few_distinct_simulations_are_counted():
    theta = np.array([[0.0], [1.0]])[np.arange(200) % 2]
    with pytest.warns(sbi.FitWarning):
        given = look(theta, theta + 1)
    with pytest.raises(ValueError, match="only 2 distinct simulations among 200"):
        given.split(jr.key(0))


@pytest.mark.parametrize("support", [[(-1, 1), (4, None)], [(-1.0, 1.0), (4.0, np.inf)]])
def test_an_open_transposed_support_warns(support, rng):
    theta = np.c_[rng.uniform(-1, 1, 300), rng.uniform(4, 6, 300)]
    with pytest.warns(sbi.SupportOrder, match="transpose"):
        look(theta, theta + rng.normal(size=(300, 2)), support)


def test_a_transposed_support_out_of_order_has_the_hint(rng):
    theta = np.c_[rng.exponential(size=300) - 1, rng.exponential(size=300) + 4]
    with pytest.warns(sbi.SupportOrder), pytest.raises(ValueError, match="low < high.*transpose"):
        look(theta, theta + rng.normal(size=(300, 2)), [(-1, np.inf), (4, np.inf)])
    with pytest.raises(ValueError, match=r"low < high, got .*\]$"):
        look(theta, theta + 1, ([0.0, 0.0], [-1.0, 9.0]))


@pytest.mark.parametrize("support", [([0, 0], None), ([0, None], [None, 1]), (None, [1, 1])])
def test_open_supports_that_hold_are_silent(support, rng):
    theta = rng.uniform(0, 1, (300, 2))
    look(theta, theta + rng.normal(size=(300, 2)), support)


def test_simulations_of_one_theta_are_on_one_side_of_the_split(rng):
    index = np.repeat(np.arange(30), 10)
    theta = rng.normal(size=(30, 2))[index]
    with pytest.warns(sbi.DuplicatedSimulations, match="only 30 distinct parameters for 300"):
        given = look(theta, theta + rng.normal(size=(300, 2)))
    kept, held = given.split(jr.key(0))
    assert not set(index[kept]) & set(index[held]) and len(held) >= 75


def test_parameters_that_are_equal_by_chance_leave_the_split_as_it_is(rng):
    theta, x = rng.normal(size=(300, 1)), rng.normal(size=(300, 2))
    theta[:5] = theta[5:10]
    np.testing.assert_array_equal(look(theta, x).group, np.arange(300))


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (lambda u: -(10 ** (6 * u - 4)), r"fit -np\.log\(-theta\[:, 0\]\)"),
        (lambda u: np.tan(3.1 * (u - 0.5)), r"fit np\.arcsinh\(theta\[:, 0\] / "),
        (lambda u: np.round(10 ** (6 * u)), r"fit np\.log1p\(theta\[:, 0\]\)"),
    ],
)
def test_theta_is_never_to_be_clipped(column, told, rng):
    theta = column(rng.uniform(size=(2000, 1)))
    with pytest.warns(sbi.WideScales, match=told) as found:
        look(theta, rng.normal(size=(2000, 2)))
    assert not any("clip" in str(warning.message) for warning in found)


def test_the_numbers_in_a_warning_are_those_of_the_column(rng):
    """An even column from -1 to 1 has quartiles at +-0.5: a robust width of 1 / 1.349 = 0.741.

    Five of 2,001 values are a little further out than thirty of these, five a little less far.
    Over 4.602 decades 98 % of the values spread over 4.51, over 4.58 they do over 4.49.
    """
    theta, x = pairs(2001)
    theta[:, 1] = np.linspace(-1, 1, 2001)
    theta[:5, 1], theta[-5:, 1] = -29.9 / 1.349, 30.1 / 1.349
    told = (
        r"0\.25% of its values beyond 30 robust widths .* fit np\.arcsinh\(theta\[:, 1\] / 0\.74\)"
    )
    with pytest.warns(sbi.WideScales, match=told):
        look(theta, x)
    for decades, counted in ((4.602, 5), (4.58, 4)):
        theta[:, 1] = 10 ** np.linspace(0, decades, 2001)
        with pytest.warns(sbi.WideScales, match=f"spreads over {counted} decades"):
            look(theta, x)


def test_a_zero_has_no_decades(rng):
    """A logarithm would be infinite there: outliers, to be brought together otherwise."""
    theta, x = pairs(2000)
    theta[:, 1] = 10 ** rng.uniform(-3, 3, 2000)
    theta[7, 1] = 0.0
    with pytest.warns(sbi.WideScales, match=r"beyond 30 robust widths .* fit np\.arcsinh"):
        look(theta, x)


def test_counts_of_which_a_quarter_is_one_can_be_judged(rng):
    u = rng.uniform(size=2000)
    x = np.where(u < 0.4, 1.0, np.round(10 ** (8 * u - 2)))[:, None]
    with pytest.warns(sbi.WideScales, match=r"spreads over 6 decades, .* fit np\.log1p\(x"):
        look(rng.normal(size=(2000, 1)), x)


def test_counts_over_decades_warn(rng):
    x = rng.poisson(10 ** rng.uniform(0, 6, (300, 1))).astype(float)
    with pytest.warns(sbi.WideScales, match=r"fit np\.log1p\(x\[:, 0\]\)"):
        look(rng.normal(size=(300, 1)), x)


def test_parameters_that_sum_to_one_warn(rng):
    theta = rng.dirichlet([1, 2, 3], 300)
    with pytest.warns(DependentParameters, match=r"columns \[0, 1, 2\].*Leave one out"):
        look(theta.astype(np.float32), theta[:, :2] + rng.normal(size=(300, 2)))


@pytest.mark.parametrize("spread, named", [(0.15, 12), (0.05, 11)])
def test_those_that_depend_on_each_other_are_named(spread, named, rng):
    """Twelve that sum to zero: all whose spread is more than a tenth of the largest."""
    spreads = np.array([1.0] * 11 + [spread])
    theta = spreads * rng.normal(size=(3000, 12))
    theta -= np.outer(theta.sum(axis=1), spreads**2 / np.sum(spreads**2))
    theta = np.column_stack([theta, rng.normal(size=3000)])
    told = f"of theta in columns {list(range(named))}, one follows"
    with pytest.warns(DependentParameters, match=re.escape(told)):
        look(theta, theta + rng.normal(size=theta.shape))


def test_a_spike_in_a_continuous_parameter_warns(rng):
    theta, x = pairs()
    theta[rng.random(300) < 0.2, 1] = 0.5
    with pytest.warns(sbi.DiscreteParameter, match=r"theta\[:, 1\] is 0.5 in "):
        look(theta, x)
    look(np.round(pairs()[0], 2), x)  # rounded values are continuous enough


def test_a_constant_parameter_is_refused():
    theta = np.random.default_rng(0).normal(size=(200, 2))
    x = theta.copy()
    theta[:, 1] = 3.0
    with pytest.raises(ValueError, match=r"theta.*constant|constant.*theta"):
        checked(theta, x, None, structured=False, invalid="raise")
