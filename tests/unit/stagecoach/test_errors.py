"""The error tree: every class has one of the exit codes that the workflow knows, and says where it was."""

import inspect

from stagecoach import errors


def _classes() -> list[type[errors.StagecoachError]]:
    return [
        value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.StagecoachError)
    ]


def test_every_exit_code_is_one_of_the_documented_ones() -> None:
    assert {error.exit_code for error in _classes()} == {66, 69, 70, 71, 75, 78, 79}


def test_no_exit_code_belongs_to_argos_executor() -> None:
    assert not {error.exit_code for error in _classes()} & {64, 65}


def test_only_codes_that_a_retry_can_help_are_retryable() -> None:
    assert errors.RETRYABLE_EXIT_CODES == (69, 71, 75)


def test_what_a_user_causes_is_a_value_error() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.DataError, ValueError)


def test_a_store_error_keeps_its_parts_and_names_the_object() -> None:
    error = errors.ObjectMissing("s3://bucket/prefix/", "a/b", "no such object")
    assert (error.url, error.key, str(error)) == (
        "s3://bucket/prefix/",
        "a/b",
        "s3://bucket/prefix/a/b: no such object",
    )


def test_the_tree_in_the_docstring_names_every_class() -> None:
    assert errors.__doc__ is not None
    assert [
        cls.__name__ for cls in _classes() if cls.__name__ not in errors.__doc__ and cls is not errors.StoreError
    ] == []
