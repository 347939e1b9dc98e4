"""Which test keeps which case of the catalogue of bad input: the groups A to F, J and K, by number.

What belongs to saves and run directories (G, H), to numbers (I) and to several processes (F07 to F15) is tested where
it is built. Most of A to C is also covered by what is generated in `test_every_option.py`.
"""

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
BAD, OPTIONS = "cli/test_bad_input.py", "cli/test_every_option.py"
FAULT = "test_a_fault_is_named_in_one_line_and_leaves_nothing"
CATALOGUE: dict[str, tuple[str, ...]] = {
    "A01 A03 A05 A07 A09 A11 A13 A15 A17 A19 A21 A23": (BAD, FAULT),
    "A05 A07 A09 B05 B09 B13 B17 C01 C05 C13 C15": (
        OPTIONS,
        "test_every_wrong_value_of_every_option_is_refused_where_it_stands",
    ),
    "A01 A17": (OPTIONS, "test_every_key_misspelt_unknown_or_twice_is_named"),
    "A11 C17 E06": (OPTIONS, "test_every_place_refuses_another_kind_an_unknown_class_and_a_missing_file"),
    "A25": (BAD, "test_variables_that_look_like_options_are_ignored"),
    "A27": (BAD, "test_help_is_printed_whatever_the_configuration"),
    "B01 B03 B05 B07 B09 B13 B15 B17 B19 C01 C03 C05 C11 C13 C15 C17 C23 D01": (BAD, FAULT),
    "B11 C21": ("test_backbone.py", "test_a_kind_that_a_part_does_not_honour_is_refused"),
    "B23": ("samplers", "test_rows_without_a_token_are_not_drawn"),
    "C07": (BAD, "test_what_is_right_at_the_edge_works"),
    "C09": ("training/test_resume.py", "decays from step 10 on"),
    "D03": ("cli/test_commands.py", "test_too_little_text_is_said"),
    "D05": ("data/test_store.py", "test_empty_documents_and_duplicates_are_counted"),
    "D07": ("data/test_store.py", "test_one_very_long_line_takes_less_than_four_times_its_size"),
    "D09": ("data/test_tables.py", "test_a_value_that_is_no_text_is_named_with_file_and_row"),
    "D11": ("data/test_tables.py", "test_a_damaged_parquet_is_named"),
    "D13": ("data/test_store.py", "test_a_changed_file_is_named_with_both_digests"),
    "D15": ("data/test_duplicates.py", "test_near_and_exact_duplicates_are_counted"),
    "D17 D19": ("data/test_store.py", "test_ids_outside_the_vocabulary_are_refused_with_their_place"),
    "D21": ("data/test_datamodule.py", "test_a_store_of_another_tokenizer_is_refused_with_both_digests"),
    "D23 D25": ("data/test_tokenizer.py", "test_special_ids_that_coincide_are_refused"),
    "D27": ("data/test_tokenizer.py", "test_special_tokens_written_in_a_text_are_ordinary_text"),
    "D29": ("data/test_mixture.py", "test_weights_are_shares_and_nested_mixtures_flatten"),
    "D31": ("data/test_sources.py", "test_a_file_that_changes_after_the_start_is_named"),
    "D33": ("data/test_tables.py", "test_a_script_is_refused_and_does_not_run"),
    "E02": ("cli/test_commands.py", "test_two_plugins_of_one_name_are_refused_naming_both_files"),
    "E04 E06 E08": ("cli/test_bad_plugins.py", "test_a_broken_plugin_is_named"),
    "E10": ("cli/test_bad_plugins.py", "test_a_plugin_of_this_interface_says_so"),
    "E12": ("cli/test_bad_plugins.py", "test_a_run_resumes_exactly_whatever_a_plugin_does_to_the_generators"),
    "F01 F03 F05": (BAD, FAULT),
    "J02": ("cli/test_commands.py", "test_few_positions_do_not_spoil_a_finished_run"),
    "J04": (BAD, "test_a_prompt_that_is_not_utf_8_is_named_by_its_byte"),
    "J06": ("samplers/test_logits.py", "test_logits_that_are_not_finite_are_an_error"),
    "J08": ("cli/test_sampling.py", "test_every_sampler_with_every_objective"),
    "J10": ("cli/test_commands.py", "test_generate_is_a_function_of_the_seed"),
    "J12": (BAD, "test_text_without_a_word_is_not_scored"),
    "J14": ("cli/test_import_export.py", "test_export_says_what_no_class_has"),
    "J16": ("cli/test_release.py", "test_logits_are_the_checkpoints_bit_for_bit"),
    "K01 K03": ("test_checkpoint.py", "test_a_payload_does_not_run"),
    "K05": ("cli/test_commands.py", "test_a_config_imports_nothing"),
    "K07": ("hf/test_import.py", "test_code_that_a_configuration_names_is_not_looked_at"),
    "K11": ("cli/test_import_export.py", "OUT is a link"),
    "K17": ("test_durable.py", "test_files_follow_the_umask"),
}
"""Cases -> file, and the test in it."""
NONE = {
    "B21": "experts are a pair of fields, and not divided over devices but by FSDP2, whose tests name both",
    "K09": "no archive is read as such; a checkpoint is a zip that torch reads, see test_fuzz.py",
    "K15": "no viewer is started",
    "K19": "a token store is held against its digests, see D13",
}
"""Cases without a test of their own, and why."""


@pytest.mark.parametrize("cases", CATALOGUE)
def test_the_test_is_there(cases):
    place, name = CATALOGUE[cases]
    files = [TESTS / place] if place.endswith(".py") else (TESTS / place).rglob("*.py")
    assert any(name in file.read_text() for file in files), (cases, place, name)
