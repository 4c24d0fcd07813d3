r"""Chapter 7, Images: weights, bits, conditions and warps.

Numbers that come out of the chapter's own training are judged by what they must show, not by
their digits.
"""

from typing import Any

import numpy as np

from .verdict import Exercise


def _count() -> Exercise:
    def sizes(channels, bias):
        return [32 * (places * channels + bias) for places in (9, 1)]

    return Exercise(
        needs="two numbers of parameters, for 3 by 3 and for 1 by 1",
        right=sizes(16, 1),
        lesson="a weight for every place, channel and output, and a bias for every output",
        mistakes={
            "each of the 32 outputs has a bias": sizes(16, 0),
            "each output looks at all 16 channels": sizes(1, 1),
            "there are 32 outputs, each with weights of its own": [9 * 16 + 1, 16 + 1],
            "one bias for each output, not for each input": [32 * 9 * 16 + 16, 32 * 16 + 16],
        },
        hint="count the weights of one output, then its bias",
        measure=np.ravel,
        rtol=0.0,
    )


def _bit() -> Exercise:
    return Exercise(
        needs="the power of ten, for exactly two bits saved in each of 64 pixels",
        right=128 * np.log10(2),
        lesson="bits add up over pixels, and factors multiply",
        mistakes={
            "those are bits: a bit is a factor of two, not of ten": 128.0,
            "that is for one pixel": 2 * np.log10(2),
            "that is the power of e": 128 * np.log(2),
            "that is one bit a pixel": 64 * np.log10(2),
            "the power of ten is asked for, not the factor": 2.0**128,
        },
        hint="2 to the number of bits saved on a whole digit, as a power of ten",
        measure=lambda power: np.ravel(power).item(),
        atol=0.2,  # 38 and 39 are this number, rounded
    )


def _no_class() -> Exercise:
    def measure(counts):
        counts = np.ravel(np.asarray(counts, float))
        even = np.all(counts >= 4) and np.all(counts <= 60)
        return [counts.shape == (10,), counts.sum() == 200, even]

    return Exercise(
        needs="the ten counts of 200 digits drawn without a class",
        right=np.full(10, 20),
        lesson="the network was shown zeros for 'any digit', so all ten come out",
        mistakes={
            "some digit hardly occurs: are all ten entries of every condition 0?": [200] + [0] * 9,
            "there should be ten counts: np.bincount(..., minlength=10)": np.full(9, 20),
            "draw 200 digits": np.full(10, 10),
        },
        hint="the condition is zeros, of shape (200, 10)",
        measure=measure,
    )


def _average() -> Exercise:
    def measure(ratio):
        ratio = np.ravel(np.asarray(ratio, float))
        near = np.all(np.abs(ratio - 1) < 0.05)
        computed = np.ptp(ratio) > 0 or ratio.size < 9
        return [ratio.shape == (9,), near, computed, np.all(ratio > 0)]

    return Exercise(
        needs="nine ratios, the loss of the live weights over the average's at each noise level",
        right=np.linspace(0.99, 1.01, 9),
        lesson="within 5% at every level: a falling rate averages by itself",
        mistakes={
            "these differ by more than 5%: take the same digits and the same key for both": (
                np.linspace(1.4, 1.5, 9)
            ),
            "there are nine noise levels, so nine ratios": np.linspace(0.99, 1.01, 3),
            "two sets of weights have not exactly the same loss: compute both": np.ones(9),
        },
        hint="a ratio of losses is positive and near 1",
        measure=measure,
    )


def _guidance() -> Exercise:
    def measure(pair: Any) -> list:
        share, ratio = np.ravel(np.asarray(pair, float))
        return [share > 0.97, share <= 1, ratio < 0.85, ratio > 0]

    return Exercise(
        needs="a pair: the share read as asked, and the spread over that without guidance",
        right=(0.99, 0.5),
        lesson="guided samples are more typical, which is not the same as better",
        mistakes={
            "the spread should fall: is the guide the network without a class, with weight 3?": (
                (0.99, 1.0)
            ),
            "the share should rise above 0.97: is cond the class that was asked for?": (0.5, 0.5),
            "a share is at most 1; divide per cent by 100": (99.0, 0.5),
        },
        hint="neither is the share higher nor the spread lower: edm.Guided(main, guide, 3.0)",
        measure=measure,
    )


def _undo() -> Exercise:
    cos, sin = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))

    def labels(first, second):
        return np.array([0.0, 0.0, 0.0, first, second, 0.0, 0.0, 0.0, 0.0])

    return Exercise(
        needs="the nine labels that turn by -20 degrees",
        right=labels(cos - 1, -sin),
        lesson="the cosine is even and the sine is odd",
        mistakes={
            "those turn by 20 degrees again": labels(cos - 1, sin),
            "the cosine does not change its sign with the angle": labels(1 - cos, -sin),
            "the labels of no turn are zeros, so the cosine enters as cos - 1": labels(cos, -sin),
            "the third and the fourth label, counted from 0, hold the angle": np.roll(
                labels(cos - 1, -sin), -1
            ),
        },
        hint="put -20 degrees into the labels of a turn, cos - 1 and sin",
        measure=np.ravel,
        rtol=1e-3,
    )


EXERCISES = (_count, _bit, _no_class, _average, _guidance, _undo)
