"""Sets of item numbers, and the order in which a source gave its items."""

from __future__ import annotations

import itertools
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from asyncrunner.batch.source.given import GivenItems
from asyncrunner.store.items import Numbers

seqs = st.lists(st.one_of(st.integers(-3000, 3000), st.integers(-(2**63), 2**63 - 1)), max_size=40)
runs = st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 1500)), max_size=5)


@given(seqs, runs, seqs)
def test_a_set_of_numbers_is_a_set(some: list[int], blocks: list[tuple[int, int]], others: list[int]) -> None:
    numbers, expected = Numbers.of(some), set(some)
    for first, count in blocks:
        block = set(range(first, first + count))
        assert numbers.add_range(first, first + count) == len(block - expected)
        expected |= block
    for other in others:
        assert numbers.add(other) is (other not in expected)
        expected.add(other)
    assert (len(numbers), list(numbers)) == (len(expected), sorted(expected))
    assert all((number in numbers) == (number in expected) for number in (*others, 1, 4999, -1))
    second = set(others)
    assert [set(numbers & Numbers.of(others)), set(numbers - Numbers.of(others))] == [expected & second, expected - second]
    assert set(Numbers.of(some) | Numbers.of(others)) == {*some, *others}


@given(st.lists(st.lists(st.integers(1, 30), max_size=20), max_size=5), st.integers(1, 7))
def test_given_items_come_back_in_input_order_with_duplicates(chunks: list[list[int]], size: int) -> None:
    items = GivenItems()
    for chunk in chunks:
        items.add(chunk)
    order = list(itertools.chain(*chunks))
    pages = list(items.pages(size))
    assert list(itertools.chain(*pages)) == order
    assert all(len(page) == size for page in pages[:-1])
    assert (len(items), items.duplicates) == (len(order), len(order) - len(set(order)))


def test_ten_million_items_in_order_take_two_megabytes() -> None:
    items = GivenItems()
    tracemalloc.start()
    for first in range(1, 10_000_000, 1000):
        items.add(range(first, first + 1000))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(items) == 10_000_000
    assert used < 3_000_000
    assert len(next(items.pages(500))) == 500
