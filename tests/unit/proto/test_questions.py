"""Questions as templates."""

import pytest
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.prompt import Prompt
from branchgrpo.proto.questions import check_template, questions


def test_fields_fill_the_braces_and_lists_give_several_questions() -> None:
    prompt = Prompt("two dogs", {"object": "dog", "count": 2, "colours": ["red", "blue"], "prompt": "hidden"})
    templates = ["{prompt}: {count} x {object}?", "Is one {colours}?", "{{yes}} or no?"]
    assert questions(templates, prompt, "here") == [
        "two dogs: 2 x dog?",
        "Is one red?",
        "Is one blue?",
        "{yes} or no?",
    ]


@pytest.mark.parametrize("field", [{}, {"things": []}, {"things": None}, {"things": [{"bytes": "AA"}]}])
def test_a_prompt_without_such_a_field_is_refused(field: dict[str, object]) -> None:
    with pytest.raises(InputError, match="here: the prompt 'a dog' has .* field 'things'"):
        questions(["Is this {things}?"], Prompt("a dog", field), "here")


@pytest.mark.parametrize("template", ["{", "}", "{}", "{prompt!r}", "{prompt:>9}", "a {b"])
def test_a_template_with_more_than_names_in_braces_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="can't be filled; write {prompt}"):
        check_template(template)
