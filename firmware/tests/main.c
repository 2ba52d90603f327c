/* Runs the tests, or those whose names contain the first argument. */
#include "world.h"

#define TESTS(X)                                                      \
  X(a_stored_certificate_means_no_packet)                              \
  X(a_damaged_record_counts_as_none)                                   \
  X(the_request_is_what_the_contract_says)                             \
  X(the_longest_request_fits)                                          \
  X(an_identity_that_is_the_device_asks_without_an_id)                 \
  X(an_answer_is_stored_then_done)                                     \
  X(after_an_empty_acknowledgement_it_only_listens)                    \
  X(a_separate_answer_that_never_comes_ends_the_session)               \
  X(an_answer_may_overtake_its_acknowledgement)                        \
  X(a_separate_answer_is_acknowledged_each_time)                       \
  X(a_separate_refusal_is_acknowledged_each_time)                      \
  X(a_non_confirmable_answer_is_not_acknowledged)                      \
  X(what_is_not_its_answer_is_not_taken)                               \
  X(a_ping_gets_a_reset)                                               \
  X(a_malformed_confirmable_message_gets_a_reset)                      \
  X(a_payload_marker_without_a_payload_is_malformed)                   \
  X(a_reset_request_is_asked_again_in_another_session)                 \
  X(a_request_is_repeated_as_it_was)                                   \
  X(the_first_copies_of_a_crowd_spread)                                \
  X(polling_too_often_does_no_harm)                                    \
  X(an_answer_comes_in_blocks_of_any_size)                             \
  X(the_largest_block_has_1024_bytes)                                  \
  X(the_server_chooses_smaller_blocks)                                 \
  X(a_copy_of_an_earlier_block_is_acknowledged_and_ignored)            \
  X(a_lost_block_is_asked_for_again)                                   \
  X(blocks_that_do_not_fit_together_are_refused)                       \
  X(an_answer_that_is_too_long_is_refused)                             \
  X(options_that_must_be_understood_are_refused)                       \
  X(a_certificate_in_another_format_is_refused)                        \
  X(an_answer_without_a_certificate_is_refused)                        \
  X(nothing_is_taken_before_it_has_asked)                              \
  X(a_stopped_device_holds_no_secret)                                  \
  X(a_crowd_spreads_at_power_on)                                       \
  X(the_first_delay_can_be_set)                                        \
  X(a_setting_has_a_bound)                                             \
  X(silence_is_answered_by_growing_delays)                             \
  X(an_answer_resets_the_back_off)                                     \
  X(max_age_wins)                                                      \
  X(max_age_has_a_bound_and_a_default)                                 \
  X(the_jitter_differs)                                                \
  X(each_code_has_its_state_and_delay)                                 \
  X(a_stopped_device_asks_less_and_less_often)                         \
  X(passing_failures_of_the_cloud_grow)                                \
  X(an_operator_error_of_the_cloud_waits_an_hour_each_time)            \
  X(the_servers_sentence_is_reported)                                  \
  X(alert_51_waits_ten_minutes_and_more)                               \
  X(another_alert_is_a_passing_failure)                                \
  X(a_handshake_without_end_is_given_up)                               \
  X(the_back_end_repeats_its_flights_in_time)                          \
  X(a_back_end_that_fails_is_tried_again)                              \
  X(no_session_is_open_while_it_waits)                                 \
  X(a_wait_that_is_shorter_than_the_linger_opens_one_session_only)     \
  X(the_clock_may_wrap)                                                \
  X(a_new_network_ends_a_wait_that_the_server_did_not_order)           \
  X(a_new_network_does_not_overrule_the_server)                        \
  X(a_new_network_replaces_a_session_that_cannot_move)                 \
  X(without_random_numbers_nothing_is_sent)                            \
  X(bad_settings_are_final)                                            \
  X(a_certificate_that_cannot_be_stored_is_not_asked_for_again)        \
  X(a_store_that_forgets_is_noticed)                                   \
  X(a_factory_reset_erases_and_asks_again)                             \
  X(every_prefix_of_an_answer_is_survived)                             \
  X(every_changed_bit_of_an_answer_is_survived)                        \
  X(bytes_after_an_answer_are_refused)                                 \
  X(any_valid_encoding_is_read)                                        \
  X(unknown_entries_are_skipped)                                       \
  X(values_of_any_type_are_skipped)                                    \
  X(what_is_not_valid_is_refused)                                      \
  X(a_field_that_is_wrong_is_refused)                                  \
  X(a_sentence_is_cut_and_cleaned)                                     \
  X(large_counts_end_with_the_input)                                   \
  X(a_record_is_read_as_it_was_written)                                \
  X(a_damaged_record_is_refused)                                       \
  X(a_record_of_other_texts_is_refused)                                \
  X(flash_keeps_the_newest_record)                                     \
  X(power_may_fail_at_every_byte_of_a_save)                            \
  X(power_may_fail_at_every_byte_of_an_erasure)                        \
  X(every_changed_bit_of_a_slot_falls_back_to_the_other)               \
  X(sequence_numbers_wrap)                                             \
  X(a_worn_flash_is_noticed)                                           \
  X(a_flash_that_cannot_work_is_refused)                               \
  X(random_slots_are_no_record)                                        \
  X(a_device_survives_a_power_cut_while_it_stores)   \
  X(a_sign_in_is_as_documented)                                       \
  X(the_longest_certificate_signs_in)                                 \
  X(the_host_is_the_certificates_or_the_firmwares)                    \
  X(names_that_would_change_the_fields_are_refused)                   \
  X(a_failing_hmac_is_no_sign_in)                                     \
  X(hmac_matches_rfc_4231)

#define DECLARE(name) void name(void);
TESTS(DECLARE)

#define LIST(name) {#name, name},
static const struct {
  const char *name;
  void (*run)(void);
} tests[] = {TESTS(LIST)};

static const char *running;

void world_failed(const char *file, int line, const char *condition) {
  fprintf(stderr, "%s failed: %s:%d: %s\n", running, file, line, condition);
  exit(1);
}

int main(int argc, char **argv) {
  int count = 0;
  for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
    if (argc > 1 && !strstr(tests[i].name, argv[1])) continue;
    running = tests[i].name;
    world_begin(1);
    tests[i].run();
    count++;
  }
  printf("%d tests passed\n", count);
  return count > 0 ? 0 : 1;
}
