"""The parser of metrics."""

from __future__ import annotations

import pytest

from loadtests.scrape import read_metrics


def test_metrics_are_summed_and_other_text_is_an_error() -> None:
    text = '# TYPE a counter\na_total{x="1"} 2\na_total{x="2"} 3\n# TYPE h histogram\n'
    text += 'h_bucket{le="1.0"} 1\nh_sum 4\nh_count 1\n'
    assert read_metrics(text) == {"a_total": 5, "a_total{x=1}": 2, "a_total{x=2}": 3, "h_sum": 4, "h_count": 1}
    with pytest.raises(ValueError, match="metric"):
        read_metrics("<html>not metrics</html>")
