"""mutants/mutate.py: which changes are tried, and when a survivor is a failure."""

from __future__ import annotations

import pytest
from mutants.mutate import (
    EQUIVALENT,
    PACKAGE,
    REPOSITORY,
    TARGETS,
    Mutant,
    Outcome,
    Target,
    annotation_spans,
    main,
    mutant_of,
    parse_equivalent,
    summary,
    verdict,
    why_not_tried,
)

ONE = Mutant("core/a.py", "f", "return x < y", "return x <= y")
OTHER = Mutant("core/a.py", "(module)", "LIMIT = 8", "LIMIT = 9")
ELSEWHERE = Mutant("core/b.py", "g", "return 1", "return 2")

LISTED = f"""# A comment.
x and y are never equal,
whatever is asked.

{ONE}
{OTHER}
Nothing asks for it.
{ELSEWHERE}
"""


def outcome(*survivors, failure=None):
    return Outcome("core/a.py", 5, 1, survivors, failure, 120.0)


def test_a_reason_holds_for_the_mutants_below_it():
    reason = "x and y are never equal, whatever is asked."
    assert parse_equivalent(LISTED) == {ONE: reason, OTHER: reason, ELSEWHERE: "Nothing asks for it."}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (str(ONE), "line 3: expected a reason"),
        (f"Why.\n{ONE}\n".replace("    - ", "    "), "expected a reason"),
        (f"Why.\n{ONE}\n    core/a.py g\n", "1 of its 3 lines"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        parse_equivalent(text)


def test_a_survivor_that_is_not_listed_fails_and_is_shown_as_it_would_be_listed():
    text, good = verdict([outcome(ONE, OTHER)], {OTHER: "why"})
    assert not good
    assert str(ONE) in text and str(OTHER) not in text
    assert parse_equivalent(f"Why.\n{text[text.index('    ') :]}") == {ONE: "Why."}
    assert summary(outcome(ONE, OTHER), {OTHER: "why"}) == (
        "core/a.py: 7 mutants, 5 killed (1 by time-out), 1 equivalent, 1 survive; 2 min"
    )


def test_listed_survivors_pass_and_what_no_longer_survives_is_said():
    assert verdict([outcome(ONE, OTHER)], parse_equivalent(LISTED))[1]
    text, good = verdict([outcome(ONE)], parse_equivalent(LISTED))
    assert good
    assert str(OTHER) in text and "take them out" in text
    assert str(ELSEWHERE) not in text, "its module was not tried"


def test_what_could_not_be_tried_fails():
    text, good = verdict([outcome(failure="its tests fail without a change")], {})
    assert not good and "core/a.py: its tests fail without a change" in text


def test_annotations_are_left_alone():
    source = "def f(x: int | None = 1 | 2) -> int | str:\n    y: int | str = 3 | 4\n"
    bars = [(line, column) for line, text in enumerate(source.splitlines(), 1) for column in _bars(text)]
    target, spans = Target("core/a.py", ()), annotation_spans(source)
    tried = [why_not_tried("core/AddNot", "f", bar, target, spans) is None for bar in bars]
    assert tried == [False, True, False, False, True]


def _bars(text):
    return [column for column, character in enumerate(text) if character == "|"]


@pytest.mark.parametrize(
    ("operator", "tried"),
    [
        ("core/NumberReplacer", True),
        ("core/ReplaceComparisonOperator_Lt_LtE", True),
        ("core/ReplaceComparisonOperator_Lt_Gt", False),
        ("core/ReplaceBinaryOperator_Add_Sub", True),
        ("core/ReplaceBinaryOperator_Add_Mul", False),
        ("core/ReplaceUnaryOperator_Delete_Not", True),
        ("core/ReplaceUnaryOperator_USub_Not", False),
    ],
)
def test_one_replacement_stands_for_the_others(operator, tried):
    assert (why_not_tried(operator, "f", (1, 0), Target("core/a.py", ()), []) is None) == tried


def test_a_target_can_be_some_functions():
    target = Target("core/a.py", (), ("f",))
    assert why_not_tried("core/AddNot", "f", (1, 0), target, []) is None
    assert why_not_tried("core/AddNot", "g", (1, 0), target, []) == "another function"


def test_a_mutant_is_read_from_its_diff():
    diff = "--- a\n+++ b\n@@ -1,2 +1,2 @@\n def f():\n-    return x < y\n+    return x <= y\n"
    assert mutant_of("core/a.py", "f", diff) == ONE
    removed = mutant_of("core/a.py", None, "--- a\n+++ b\n@@ -1 +1 @@\n-@cache\n def f(): ...\n")
    assert removed == Mutant("core/a.py", "(module)", "@cache", "")
    assert parse_equivalent(f"Why.\n{removed}") == {removed: "Why."}


def test_the_list_and_the_targets_are_those_of_the_repository():
    for target in TARGETS.values():
        assert (REPOSITORY / PACKAGE / target.module).is_file()
        assert target.tests
        assert all((REPOSITORY / "tests" / test).is_file() for test in target.tests)
    assert {mutant.module for mutant in parse_equivalent(EQUIVALENT.read_text())} <= set(TARGETS)


def test_an_unknown_module_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["core/nothing.py"])
    assert "core/nothing.py is not on the list; expected some of core/problem.py" in capsys.readouterr().err
