"""The price of a fixed order of sums, as the answer to a run tells it."""

from __future__ import annotations

from gsbench.report.answer import answers
from gsbench.report.price import prices_of_order
from gsbench.report.ratios import compare
from tests.gsbench import synthetic as s

ATOMIC, ORDERED = "group_shared/cuda", "group_shared/cuda_deterministic"


def pair(price: float, pass_: str = "backward", **axes: int) -> list:
    where = s.point(**axes)
    return [s.timed(ATOMIC, 2.0, where, pass_, spread=0.0), s.timed(ORDERED, 2.0 * price, where, pass_, spread=0.0)]


def test_the_ratio_at_the_default_point_and_over_all() -> None:
    records = [*pair(1.25), *pair(1.0, batch=16), *pair(2.0, batch=64), *pair(1.6, group_size=16)]
    (sentence,) = prices_of_order(compare(records))
    assert sentence == (
        "A fixed order of sums in backward takes 1.25× [1.25×, 1.25×] the time of group_shared/cuda at "
        "B=256 D=768 L=131,072 K=32 G=64 (geometric mean of 4 1.41×, from 1.00× to 2.00×)."
    )
    assert answers(compare(records))[0].sentences[3:] == (sentence,)


def test_a_pass_at_a_time_where_both_were_timed() -> None:
    alone = s.timed(ATOMIC, 1.0, s.point(batch=1), "grad_input")
    sentences = prices_of_order(compare([*pair(1.5), *pair(1.2, "grad_input"), alone]))
    assert [sentence.split(" takes ")[0] for sentence in sentences] == [
        "A fixed order of sums in grad_input", "A fixed order of sums in backward",
    ]  # fmt: skip
    assert sentences[0].endswith("at B=256 D=768 L=131,072 K=32 G=64.")
    assert prices_of_order(compare([alone])) == []
    assert len(answers(compare([alone]))[0].sentences) == 3
