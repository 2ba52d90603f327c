/* Every delay: the first one, the back-off, Max-Age, each code, alert 51, a handshake without end. */
#include "world.h"

/* Answers the newest request. Returns the time until the next session. */
static uint64_t delay_after(uint8_t code, int64_t max_age) {
  struct message answer = piggybacked(code);
  if (max_age >= 0) add_option(&answer, 14, (uint64_t)max_age, 4);
  deliver(&answer);
  return world_until_next_session((uint64_t)12 * 24 * HOURS);
}

static bool is_jittered(uint64_t delay, uint64_t base) {
  return delay >= base && delay <= base + base / 2;
}

void a_crowd_spreads_at_power_on(void) {
  uint64_t least = UINT64_MAX, most = 0;
  for (uint64_t seed = 1; seed <= 1000; seed++) {
    world_begin(seed);
    world_start();
    CHECK(world.sent_count == 0);
    uint64_t delay = world_until_next_session(30 * SECONDS);
    if (delay < least) least = delay;
    if (delay > most) most = delay;
  }
  CHECK(least < 500 && most > 29500);
}

void the_first_delay_can_be_set(void) {
  world.settings.first_delay_ms = 1;
  world_start();
  CHECK(world_until_next_session(1) <= 1);
}

void a_setting_has_a_bound(void) {
  world.settings.first_delay_ms = world.settings.retry_ms = world.settings.longest_retry_ms = UINT32_MAX;
  world.settings.operator_ms = world.settings.longest_operator_ms = UINT32_MAX;
  world_start();
  world_until_next_session((uint64_t)7 * 24 * HOURS);
  CHECK(is_jittered(delay_after(0xa4, -1), (uint64_t)7 * 24 * HOURS));
  CHECK(is_jittered(delay_after(0x84, -1), (uint64_t)7 * 24 * HOURS));
  CHECK(is_jittered(delay_after(0x80, -1), (uint64_t)7 * 24 * HOURS));
}

/* A server that is away for a week: the delay doubles from 30 s to an hour, with jitter. */
void silence_is_answered_by_growing_delays(void) {
  world.connects_at_once = false;
  world_start();
  world_until_next_session(30 * SECONDS);
  uint64_t base = 30 * SECONDS, spread = 0;
  while (world.now < (uint64_t)7 * 24 * HOURS) {
    uint64_t delay = world_until_next_session(2 * HOURS) - 120 * SECONDS; /* less the handshake */
    CHECK(is_jittered(delay, base) && world_report().reason == CD_SILENCE);
    spread += delay - base;
    base = base * 2 < HOURS ? base * 2 : HOURS;
  }
  CHECK(base == HOURS && world.opened > 100 && world.opened < 160);
  CHECK(spread / (uint64_t)world.opened > 10 * MINUTES); /* on average a quarter of an hour */
  CHECK(world.closed == world.opened - 1);
}

void an_answer_resets_the_back_off(void) {
  world.connects_at_once = false;
  world_start();
  world_until_next_session(30 * SECONDS);
  for (int i = 0; i < 6; i++) world_until_next_session(2 * HOURS);
  world.connects_at_once = true;
  world_until_next_session(2 * HOURS);
  delay_after(0xa3, 5);
  world.connects_at_once = false;
  CHECK(world.device.failures == 0);
}

void max_age_wins(void) {
  static const uint32_t seconds[] = {1, 7, 60, 3600, 7200, 100000};
  for (int failures = 0; failures < 10; failures += 9) {
    for (size_t i = 0; i < 2 * sizeof seconds / sizeof seconds[0]; i++) {
      uint64_t base = (uint64_t)seconds[i / 2] * SECONDS;
      world_begin(i + 1);
      world_ask();
      world.device.failures = (uint8_t)failures;
      CHECK(is_jittered(delay_after(i % 2 ? 0xa3 : 0x9d, seconds[i / 2]), base));
    }
  }
}

void max_age_has_a_bound_and_a_default(void) {
  world_ask();
  CHECK(is_jittered(delay_after(0xa3, UINT32_MAX), (uint64_t)7 * 24 * HOURS));
  CHECK(is_jittered(delay_after(0xa3, -1), MINUTES));
  CHECK(is_jittered(delay_after(0x9d, -1), MINUTES));
  /* 0 names no time. */
  CHECK(is_jittered(delay_after(0xa3, 0), 30 * SECONDS));
  CHECK(is_jittered(delay_after(0xa3, 0), MINUTES));
}

void the_jitter_differs(void) {
  uint64_t least = UINT64_MAX, most = 0;
  for (uint64_t seed = 1; seed <= 300; seed++) {
    world_begin(seed);
    world_ask();
    uint64_t delay = delay_after(0xa3, 100);
    if (delay < least) least = delay;
    if (delay > most) most = delay;
  }
  CHECK(least >= 100 * SECONDS && least < 102 * SECONDS && most > 148 * SECONDS && most <= 150 * SECONDS);
}

/* docs/device.md, "Read the answer". */
void each_code_has_its_state_and_delay(void) {
  static const struct {
    uint8_t code;
    enum cd_state state;
    uint64_t delay;
  } codes[] = {
      {0x80, CD_REJECTED, 24 * HOURS}, /* 4.00 */
      {0x82, CD_REJECTED, 24 * HOURS}, /* 4.02 */
      {0x83, CD_STOPPED, HOURS},       /* 4.03 */
      {0x84, CD_STOPPED, HOURS},       /* 4.04 */
      {0x85, CD_REJECTED, 24 * HOURS}, /* 4.05 */
      {0x86, CD_REJECTED, 24 * HOURS}, /* 4.06 */
      {0x88, CD_WAITING, 30 * SECONDS}, /* 4.08 */
      {0x8c, CD_REJECTED, 24 * HOURS}, /* 4.12 */
      {0x8d, CD_REJECTED, 24 * HOURS}, /* 4.13 */
      {0x8f, CD_REJECTED, 24 * HOURS}, /* 4.15 */
      {0x9d, CD_WAITING, MINUTES},     /* 4.29 */
      {0xa0, CD_WAITING, 30 * SECONDS}, /* 5.00 */
      {0xa2, CD_WAITING, HOURS},       /* 5.02 */
      {0xa3, CD_WAITING, MINUTES},     /* 5.03 */
      {0xa4, CD_WAITING, MINUTES},     /* 5.04 */
      {0xa5, CD_REJECTED, 24 * HOURS}, /* 5.05 */
      {0x9f, CD_REJECTED, 24 * HOURS}, /* 4.31, unknown */
      {0xbf, CD_WAITING, 30 * SECONDS}, /* 5.31, unknown */
      {0x44, CD_WAITING, 30 * SECONDS}, /* 2.04 */
  };
  for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
    world_begin(i + 1);
    world_ask();
    struct message answer = piggybacked(codes[i].code);
    CHECK(deliver(&answer) == codes[i].state && world_report().code == codes[i].code);
    CHECK(world.closed == 1);
    CHECK(is_jittered(world_until_next_session(36 * HOURS), codes[i].delay));
  }
}

void a_stopped_device_asks_less_and_less_often(void) {
  world_ask();
  for (uint64_t base = HOURS, i = 0; i < 8; i++) {
    CHECK(is_jittered(delay_after(i % 2 ? 0x83 : 0x84, -1), base));
    base = base * 2 < 24 * HOURS ? base * 2 : 24 * HOURS;
  }
  /* Another answer ends that. */
  delay_after(0xa3, 1);
  CHECK(is_jittered(delay_after(0x84, -1), HOURS));
}

void passing_failures_of_the_cloud_grow(void) {
  world_ask();
  for (uint64_t base = MINUTES, i = 0; i < 10; i++) {
    CHECK(is_jittered(delay_after(0xa4, -1), base));
    base = base * 2 < HOURS ? base * 2 : HOURS;
  }
}

void an_operator_error_of_the_cloud_waits_an_hour_each_time(void) {
  world_ask();
  for (int i = 0; i < 4; i++) CHECK(is_jittered(delay_after(0xa2, 5), HOURS));
}

void the_servers_sentence_is_reported(void) {
  world_ask();
  struct message answer = piggybacked(0x84);
  add_payload(&answer, "\xa2\x20\x78\x16the device is invalid\x0a\x38\x18\xf5", 29);
  deliver(&answer);
  CHECK(strcmp(world_report().why, "the device is invalid?") == 0);
  CHECK(world_report().reason == CD_ANSWERED && world_report().wait_ms >= HOURS);
  world_until_next_session(2 * HOURS);
  CHECK(world_report().why[0] == 0);

  char payload[300] = "\xa1\x20\x79\x01\x00";
  memset(payload + 5, 'x', 256);
  answer = piggybacked(0x84);
  add_payload(&answer, payload, 261);
  deliver(&answer);
  CHECK(strlen(world_report().why) == CD_WHY_ROOM - 1);
}

void alert_51_waits_ten_minutes_and_more(void) {
  world.connects_at_once = false;
  world_start();
  world_until_next_session(30 * SECONDS);
  uint64_t base = 30 * SECONDS;
  for (int i = 0; i < 9; i++) {
    cd_dtls_ended(&world.device, 51);
    cd_poll(&world.device);
    CHECK(world.device.state == CD_WAITING && world_report().reason == CD_WRONG_KEY);
    CHECK(world_report().dtls_alert == 51 && world.closed == world.opened);
    CHECK(is_jittered(world_until_next_session(2 * HOURS), base < 10 * MINUTES ? 10 * MINUTES : base));
    base = base * 2 < HOURS ? base * 2 : HOURS;
  }
}

void another_alert_is_a_passing_failure(void) {
  world_ask();
  cd_dtls_ended(&world.device, 0); /* close_notify: the server stops */
  cd_poll(&world.device);
  CHECK(world.device.state == CD_WAITING && world_report().reason == CD_SESSION_ENDED && world.closed == 1);
  CHECK(is_jittered(world_until_next_session(MINUTES), 30 * SECONDS));
  /* An alert 51 after the handshake says nothing about the key. */
  cd_dtls_ended(&world.device, 51);
  cd_poll(&world.device);
  CHECK(world_report().reason == CD_SESSION_ENDED);
}

void a_handshake_without_end_is_given_up(void) {
  world.connects_at_once = false;
  world_start();
  world_until_next_session(30 * SECONDS);
  world_pass(119 * SECONDS);
  CHECK(world.device.state == CD_CONNECTING && world.closed == 0);
  world_pass(2 * SECONDS);
  CHECK(world.device.state == CD_WAITING && world_report().reason == CD_SILENCE && world.closed == 1);
}

void the_back_end_repeats_its_flights_in_time(void) {
  world.connects_at_once = false;
  world_start();
  world_until_next_session(30 * SECONDS);
  CHECK(cd_wait_ms(&world.device) == 700);
  world_pass(70 * SECONDS);
  CHECK(world.flights == 100);
}

void a_back_end_that_fails_is_tried_again(void) {
  world.cannot_open = true;
  world_start();
  world_until_next_session(30 * SECONDS);
  CHECK(world.device.state == CD_WAITING && world.closed == 1);
  world.cannot_open = false;
  world_until_next_session(MINUTES);
  CHECK(world.device.state == CD_ASKING);
}

void no_session_is_open_while_it_waits(void) {
  static const uint8_t codes[] = {0x84, 0x9d, 0xa2, 0xa3, 0xa4, 0x80};
  for (size_t i = 0; i < sizeof codes; i++) {
    world_begin(i + 1);
    world_ask();
    struct message answer = separate(codes[i], 5);
    add_option(&answer, 14, 600, 2);
    deliver(&answer);
    CHECK(world.closed == 0); /* a copy may still be acknowledged */
    world_pass(3001);
    CHECK(world.closed == 1);
    world_until_next_session(36 * HOURS);
    CHECK(world.opened == 2 && world.closed == 1);
  }
}

void a_wait_that_is_shorter_than_the_linger_opens_one_session_only(void) {
  world_ask();
  struct message answer = separate(0xa3, 5);
  add_option(&answer, 14, 1, 1);
  deliver(&answer);
  world_until_next_session(2 * SECONDS);
  CHECK(world.opened == 2 && world.closed == 1);
  world_pass(2 * SECONDS);
  CHECK(world.device.state == CD_ASKING && world.closed == 1);
}

void the_clock_may_wrap(void) {
  for (uint32_t before = 0; before < 200 * SECONDS; before += 7919) {
    world_begin(before + 1u);
    world.clock_offset = 0 - before;
    world.connects_at_once = false;
    world_start();
    world_until_next_session(30 * SECONDS);
    world.connects_at_once = true;
    CHECK(is_jittered(world_until_next_session(3 * MINUTES) - 120 * SECONDS, 30 * SECONDS));
    CHECK(is_jittered(delay_after(0xa3, 600000), (uint64_t)600000 * SECONDS));
  }
}

void a_new_network_ends_a_wait_that_the_server_did_not_order(void) {
  world.connects_at_once = false;
  world_start();
  world_until_next_session(30 * SECONDS);
  for (int i = 0; i < 8; i++) world_until_next_session(2 * HOURS);
  world_pass(121 * SECONDS);
  CHECK(world.device.state == CD_WAITING && cd_wait_ms(&world.device) > 40 * MINUTES);
  cd_network_changed(&world.device);
  CHECK(cd_wait_ms(&world.device) <= 30 * SECONDS);
  /* One that comes and goes does not shorten the wait again and again. */
  uint32_t wait = cd_wait_ms(&world.device);
  for (int i = 0; i < 100; i++) cd_network_changed(&world.device);
  CHECK(cd_wait_ms(&world.device) == wait);
}

void a_new_network_does_not_overrule_the_server(void) {
  static const uint8_t codes[] = {0x9d, 0xa3, 0xa2, 0x84, 0x80};
  for (size_t i = 0; i < sizeof codes; i++) {
    world_begin(i + 1);
    world_ask();
    struct message answer = piggybacked(codes[i]);
    add_option(&answer, 14, 600, 2);
    deliver(&answer);
    uint32_t wait = cd_wait_ms(&world.device);
    cd_network_changed(&world.device);
    CHECK(cd_wait_ms(&world.device) == wait);
  }
}

void a_new_network_replaces_a_session_that_cannot_move(void) {
  world_ask();
  cd_network_changed(&world.device);
  CHECK(world.closed == 1 && world.device.state == CD_WAITING && cd_wait_ms(&world.device) <= 30 * SECONDS);
  world_until_next_session(30 * SECONDS);

  world_begin(2);
  world.moves = true;
  world_ask();
  CHECK(cd_network_changed(&world.device) == CD_ASKING && world.closed == 0);
}

void without_random_numbers_nothing_is_sent(void) {
  world.no_random = true;
  world_start();
  world_pass(10 * MINUTES);
  CHECK(world.opened == 0 && world.sent_count == 0 && world_report().reason == CD_NO_RANDOM);
  world.no_random = false;
  world_until_next_session(2 * HOURS);
  CHECK(world.device.state == CD_ASKING);
}

void bad_settings_are_final(void) {
  static const char long_id[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0";
  /* The back end of these tests takes an identity of 60 bytes and a key of 50. */
  world.settings.identity = long_id + 5;
  world.settings.key_length = 50;
  CHECK(world_start() == CD_WAITING);
  for (int fault = 0; fault < 9; fault++) {
    world_begin((uint64_t)fault + 1);
    if (fault == 0) world.settings.identity = NULL;
    if (fault == 1) world.settings.identity = "";
    if (fault == 2) world.settings.identity = long_id + 4;
    if (fault == 3) world.settings.key = NULL;
    if (fault == 4) world.settings.key_length = 0;
    if (fault == 5) world.settings.key_length = 51;
    if (fault == 6) world.settings.device_id = "SN 1";
    if (fault == 7) world.settings.device_id = long_id;
    if (fault == 8) world.settings.id_kind = "deviceIds";
    CHECK(world_start() == CD_REJECTED && world_report().reason == CD_BAD_SETTINGS);
    CHECK(cd_wait_ms(&world.device) == CD_FOREVER);
    world_pass((uint64_t)10 * 24 * HOURS);
    cd_network_changed(&world.device);
    CHECK(world.opened == 0);
  }
}

void a_certificate_that_cannot_be_stored_is_not_asked_for_again(void) {
  world.failing_saves = 5;
  world_ask();
  struct message answer = piggybacked(0x45);
  add_payload(&answer, certificate_cbor, certificate_cbor_length);
  CHECK(deliver(&answer) == CD_STORING && world_report().reason == CD_NOT_STORED && world.closed == 1);
  struct cd_certificate certificate;
  CHECK(cd_get_certificate(&world.device, &certificate) < 0);
  world_pass(MINUTES);
  CHECK(world.device.state == CD_DONE && world.saves == 6 && world.opened == 1 && has_certificate());
}

void a_store_that_forgets_is_noticed(void) {
  world.forgets = true;
  world_ask();
  struct message answer = piggybacked(0x45);
  add_payload(&answer, certificate_cbor, certificate_cbor_length);
  CHECK(deliver(&answer) == CD_STORING);
  /* A worn flash is spared: an hour between two tries in the end. */
  world_pass((uint64_t)24 * HOURS);
  CHECK(world.device.state == CD_STORING && world.saves < 50);
  world.forgets = false;
  world_pass(2 * HOURS);
  CHECK(has_certificate());
}

void a_factory_reset_erases_and_asks_again(void) {
  world_ask();
  struct message answer = piggybacked(0x45);
  add_payload(&answer, certificate_cbor, certificate_cbor_length);
  deliver(&answer);
  world.failing_saves = 1;
  CHECK(cd_forget(&world.device) < 0 && world.device.state == CD_DONE && has_certificate());
  CHECK(cd_forget(&world.device) == 0 && world.record_length == 0 && world.device.state == CD_WAITING);
  world_until_next_session(30 * SECONDS);
  CHECK(world.device.state == CD_ASKING);
}
