"""The table of compile reports."""

from dfa_jax.report import pod_table
from dfa_jax.report.pod import PodReport, Traffic


def made_up(variant: str, peak: float) -> pod_table.Compiled:
    """A report of 16 devices with this much memory in use."""
    mesh = {"data": 8, "model": 2}
    traffic = {"all-reduce": Traffic(3, 4_000_000)}
    report = PodReport("v5e:4x4", mesh, 10**9, int(peak * 1e9), 16 * 10**9, 32 * 10**12, traffic)
    return pod_table.Compiled("scaling_laws/pod/made_up", variant, "", report, {"jax": "0"})


def test_a_report_takes_the_place_of_the_last(tmp_path):
    """Oracle: the contract. One line a variant, slice and options; the file and what is returned
    agree, and both are the reports that went in."""
    path, first, other = tmp_path / "compiled.jsonl", made_up("BP", 12), made_up("DFA", 9)
    again = made_up("BP", 17.5)
    assert pod_table.keep(path, first) == [first]
    assert pod_table.keep(path, other) == [first, other]
    assert pod_table.keep(path, again) == [other, again]
    assert pod_table.records.read_lines(path, pod_table.parse) == [other, again]


def test_rows_by_hand():
    """Oracle: by hand. A report that does not fit says so; FLOPs are those of one of 16 devices."""
    *_, fits, misfit = pod_table.markdown([made_up("BP", 12), made_up("DFA", 17.5)]).splitlines()[
        :4
    ]
    assert fits == (
        "| made_up, BP |  | v5e:4x4 | 8 data x 2 model | yes | 12.00 of 16 | 1.00 | 2e+12 |"
        " 3 all-reduce (4 MB) |"
    )
    assert "| **no** | 17.50 of 16 |" in misfit
