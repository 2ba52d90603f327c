/* The request, its answer, and what else a server may send. */
#include "world.h"

static struct message certificate_in(struct message message) {
  add_payload(&message, certificate_cbor, certificate_cbor_length);
  return message;
}

void a_stored_certificate_means_no_packet(void) {
  world_ask();
  struct message answer = certificate_in(piggybacked(0x45));
  deliver(&answer);
  world.opened = world.closed = world.sent_count = 0;
  CHECK(world_start() == CD_DONE && has_certificate());
  world_pass((uint64_t)30 * 24 * HOURS);
  cd_network_changed(&world.device);
  deliver(&answer);
  CHECK(cd_wait_ms(&world.device) == CD_FOREVER);
  CHECK(world.opened == 0 && world.sent_count == 0 && has_certificate());
}

void a_damaged_record_counts_as_none(void) {
  world_ask();
  struct message answer = certificate_in(piggybacked(0x45));
  deliver(&answer);
  world.record[20] ^= 1;
  CHECK(world_start() == CD_WAITING);
  world_until_next_session(30 * SECONDS);
  CHECK(world.device.state == CD_ASKING);
}

void the_request_is_what_the_contract_says(void) {
  world_ask();
  const uint8_t *request = last();
  CHECK(request[0] == 0x44 && request[1] == 0x05);
  static const char rest[] = "\xb4" "cert\x11\x3c\xff\xa2\x62sn\x68PLUG0001\x64host\xf5";
  size_t length = world.sent[(world.sent_count - 1) % SENT_MAX].length;
  CHECK(length == 8 + sizeof rest - 1 && memcmp(request + 8, rest, sizeof rest - 1) == 0);
}

void the_longest_request_fits(void) {
  world.settings.device_id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
  world.settings.id_kind = NULL;
  world.settings.block_size = 64;
  world_ask();
  CHECK(world.sent[(world.sent_count - 1) % SENT_MAX].length == 8 + 5 + 2 + 2 + 1 + 1 + 9 + 66 + 6);
  CHECK(memcmp(last() + 8 + 5 + 2, "\xb1\x02\xff\xa2\x68" "deviceId\x78\x40" "0123", 17) == 0);
}

void an_identity_that_is_the_device_asks_without_an_id(void) {
  world.settings.device_id = NULL;
  world_ask();
  CHECK(memcmp(last() + 8, "\xb4" "cert\x11\x3c\xff\xa1\x64host\xf5", 15) == 0);
}

void an_answer_is_stored_then_done(void) {
  world_ask();
  struct message answer = certificate_in(piggybacked(0x45));
  CHECK(deliver(&answer) == CD_DONE && has_certificate());
  CHECK(world.saves == 1 && world.state_at_save != CD_DONE);
  CHECK(world.closed == 1 && cd_wait_ms(&world.device) == CD_FOREVER);
  CHECK(world_report().code == 0x45 && world_report().attempts == 1);
}

void after_an_empty_acknowledgement_it_only_listens(void) {
  world_ask();
  int sent = world.sent_count;
  struct message acknowledgement = piggybacked(0);
  CHECK(deliver(&acknowledgement) == CD_REGISTERING);
  world_pass(246 * SECONDS);
  CHECK(world.sent_count == sent && world.device.state == CD_REGISTERING);
  struct message answer = certificate_in(separate(0x45, 7));
  CHECK(deliver(&answer) == CD_DONE && has_certificate());
}

void a_separate_answer_that_never_comes_ends_the_session(void) {
  world_ask();
  struct message acknowledgement = piggybacked(0);
  deliver(&acknowledgement);
  world_pass(248 * SECONDS);
  CHECK(world.device.state == CD_WAITING && world_report().reason == CD_SILENCE && world.closed == 1);
}

void an_answer_may_overtake_its_acknowledgement(void) {
  world_ask();
  struct message answer = certificate_in(separate(0x45, 7));
  CHECK(deliver(&answer) == CD_DONE && has_certificate());
}

void a_separate_answer_is_acknowledged_each_time(void) {
  static const uint8_t acknowledgement[4] = {0x60, 0, 0, 7};
  world_ask();
  struct message empty = piggybacked(0), answer = certificate_in(separate(0x45, 7));
  deliver(&empty);
  int sent = world.sent_count;
  deliver(&answer);
  CHECK(world.sent_count == sent + 1 && memcmp(last(), acknowledgement, 4) == 0);
  CHECK(world.sent_at_save == sent); /* stored first */
  world_pass(2500);
  CHECK(deliver(&answer) == CD_DONE && world.sent_count == sent + 2 && memcmp(last(), acknowledgement, 4) == 0);
  CHECK(world.saves == 1);
  world_pass(1000);
  CHECK(world.closed == 1);
  deliver(&answer); /* the session is gone */
  CHECK(world.sent_count == sent + 2 && cd_wait_ms(&world.device) == CD_FOREVER);
}

void a_separate_refusal_is_acknowledged_each_time(void) {
  world_ask();
  struct message answer = separate(0xa4, 9);
  CHECK(deliver(&answer) == CD_WAITING && last()[0] == 0x60 && id_of(last()) == 9);
  int sent = world.sent_count;
  CHECK(deliver(&answer) == CD_WAITING && world.sent_count == sent + 1 && world.device.failures == 2);
}

void a_non_confirmable_answer_is_not_acknowledged(void) {
  world_ask();
  int sent = world.sent_count;
  struct message answer = message_with(CD_NON, 0x45, 9, world.device.token);
  answer = certificate_in(answer);
  CHECK(deliver(&answer) == CD_DONE && has_certificate() && world.sent_count == sent);
}

void what_is_not_its_answer_is_not_taken(void) {
  world_ask();
  uint16_t id = world.device.message_id;
  uint32_t token = world.device.token;
  int sent = world.sent_count;
  struct message wrong[] = {
      message_with(CD_ACK, 0x45, (uint16_t)(id + 1), token), /* another message ID */
      message_with(CD_ACK, 0x45, id, token ^ 0x100),         /* another token */
      message_with(CD_NON, 0x45, id, token ^ 1),
      message_with(CD_ACK, 0x05, id, token), /* a request */
      message_with(CD_ACK, 0x65, id, token), /* a class that no answer has */
      message_with(CD_ACK, 0, (uint16_t)(id - 1), 0),
      message_with(CD_RST, 0, (uint16_t)(id + 1), 0),
      message_with(CD_NON, 0, id, 0),
  };
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    if (wrong[i].length > 4) wrong[i] = certificate_in(wrong[i]);
    CHECK(deliver(&wrong[i]) == CD_ASKING);
  }
  CHECK(world.sent_count == sent && world.saves == 0);
  /* A confirmable message is rejected. */
  struct message other = certificate_in(message_with(CD_CON, 0x45, 77, token ^ 1));
  CHECK(deliver(&other) == CD_ASKING && memcmp(last(), "\x70\x00\x00\x4d", 4) == 0);
}

void a_ping_gets_a_reset(void) {
  world_ask();
  struct message ping = message_with(CD_CON, 0, 0x1234, 0);
  CHECK(deliver(&ping) == CD_ASKING && memcmp(last(), "\x70\x00\x12\x34", 4) == 0);
}

void a_malformed_confirmable_message_gets_a_reset(void) {
  world_ask();
  CHECK(world_deliver((const uint8_t *)"\x49\x45\x00\x07", 4) == CD_ASKING && memcmp(last(), "\x70\x00\x00\x07", 4) == 0);
  int sent = world.sent_count;
  world_deliver((const uint8_t *)"\x81\x45\x00\x07", 4); /* version 2 */
  world_deliver((const uint8_t *)"\x41\x45", 2);
  CHECK(world.sent_count == sent);
}

void a_payload_marker_without_a_payload_is_malformed(void) {
  world_ask();
  struct message answer = piggybacked(0x84);
  answer.bytes[answer.length++] = 0xff;
  CHECK(deliver(&answer) == CD_ASKING);
}

void a_reset_request_is_asked_again_in_another_session(void) {
  world_ask();
  uint16_t id = world.device.message_id;
  uint32_t token = world.device.token;
  /* A reset is empty. */
  struct message full = message_with(CD_RST, 0x45, id, 4);
  CHECK(deliver(&full) == CD_ASKING);
  struct message reset = message_with(CD_RST, 0, id, 0);
  CHECK(deliver(&reset) == CD_WAITING && world_report().reason == CD_REQUEST_REFUSED && world.closed == 1);
  world_until_next_session(45 * SECONDS);
  CHECK(world.device.message_id != id && world.device.token != token);
}

/* RFC 7252 section 4.2: 2 to 3 s, doubled four times; then a new handshake. */
void a_request_is_repeated_as_it_was(void) {
  world_ask();
  uint8_t request[256];
  size_t length = world.sent[0].length;
  memcpy(request, world.sent[0].bytes, length);
  world_pass(94 * SECONDS);
  CHECK(world.sent_count == 5 && world.device.state == CD_WAITING && world_report().reason == CD_SILENCE);
  uint64_t gap = world.sent[1].at - world.sent[0].at;
  CHECK(gap >= 2 * SECONDS && gap <= 3 * SECONDS);
  for (int i = 1; i < 5; i++) {
    CHECK(world.sent[i].length == length && memcmp(world.sent[i].bytes, request, length) == 0);
    CHECK(world.sent[i].at - world.sent[i - 1].at == gap << (i - 1));
  }
  CHECK(world.closed == 1);
}

void the_first_copies_of_a_crowd_spread(void) {
  uint64_t least = UINT64_MAX, most = 0;
  for (uint64_t seed = 1; seed <= 200; seed++) {
    world_begin(seed);
    world_ask();
    world_pass(4 * SECONDS);
    uint64_t gap = world.sent[1].at - world.sent[0].at;
    if (gap < least) least = gap;
    if (gap > most) most = gap;
  }
  CHECK(least < 2100 && most > 2900);
}

void polling_too_often_does_no_harm(void) {
  world_ask();
  for (int i = 0; i < 94 * SECONDS; i++) {
    world.now++;
    cd_poll(&world.device);
  }
  CHECK(world.sent_count == 5);
}

/* --- Answers in blocks --- */

/* Answers the request for a block from the certificate. */
static struct message block_of(struct message message, uint8_t exponent, uint64_t etag) {
  size_t size = (size_t)16 << exponent, at = world.device.used;
  size_t left = certificate_cbor_length - at, length = left < size ? left : size;
  struct message block = message_with((uint8_t)(message.bytes[0] >> 4 & 3), message.bytes[1], id_of(message.bytes),
                                      world.device.token);
  if (etag) add_option(&block, 4, etag, 8);
  add_option(&block, 12, 60, 1);
  add_option(&block, 23, at / size << 4 | (left > size ? 8u : 0) | exponent, 2);
  add_payload(&block, certificate_cbor + at, length);
  return block;
}

void an_answer_comes_in_blocks_of_any_size(void) {
  for (uint8_t exponent = 0; exponent <= 6; exponent++) {
    world_begin(exponent + 1u);
    world.settings.block_size = (uint16_t)(16 << exponent);
    world_ask();
    size_t blocks = (certificate_cbor_length + (16u << exponent) - 1) / (16u << exponent);
    for (size_t i = 0; i < blocks; i++) {
      CHECK(world.device.state == CD_ASKING && world.device.used == i * (16u << exponent));
      /* Block2 of the request: the number and the size. */
      const uint8_t *option = last() + 8 + 5 + 2;
      size_t number = 0, size = option[0] & 15;
      for (size_t j = 0; j < size; j++) number = number << 8 | option[1 + j];
      CHECK(option[0] >> 4 == 11 && number == (i << 4 | exponent));
      struct message block = block_of(piggybacked(0x45), exponent, 0xabcdef);
      deliver(&block);
    }
    CHECK(has_certificate() && world.opened == 1);
  }
}

void the_largest_block_has_1024_bytes(void) {
  world.settings.block_size = UINT16_MAX;
  world_ask();
  CHECK(memcmp(last() + 8 + 5 + 2, "\xb1\x06", 2) == 0);
}

void the_server_chooses_smaller_blocks(void) {
  world_ask(); /* asks for none */
  for (int i = 0; i < 5; i++) {
    struct message block = block_of(i % 2 ? separate(0x45, (uint16_t)(100 + i)) : piggybacked(0x45), 1, 0);
    deliver(&block);
  }
  CHECK(has_certificate());
}

void a_copy_of_an_earlier_block_is_acknowledged_and_ignored(void) {
  world_ask();
  struct message first = block_of(separate(0x45, 50), 2, 1);
  deliver(&first);
  uint16_t used = world.device.used, id = world.device.message_id;
  int sent = world.sent_count;
  CHECK(deliver(&first) == CD_ASKING && world.device.used == used && world.device.message_id == id);
  CHECK(world.sent_count == sent + 1 && last()[0] == 0x60);
  for (int i = 0; i < 2; i++) {
    struct message block = block_of(piggybacked(0x45), 2, 1);
    deliver(&block);
  }
  CHECK(has_certificate());
}

void a_lost_block_is_asked_for_again(void) {
  world_ask();
  struct message first = block_of(piggybacked(0x45), 2, 1);
  deliver(&first);
  int sent = world.sent_count;
  world_pass(3 * SECONDS);
  CHECK(world.sent_count == sent + 1);
  for (int i = 0; i < 2; i++) {
    struct message block = block_of(piggybacked(0x45), 2, 1);
    deliver(&block);
  }
  CHECK(has_certificate());
}

static void second_block_is_refused(struct message second) {
  CHECK(deliver(&second) == CD_WAITING && world_report().reason == CD_BAD_ANSWER && world.saves == 0);
  CHECK(world.device.used == 0);
}

void blocks_that_do_not_fit_together_are_refused(void) {
  for (int fault = 0; fault < 5; fault++) {
    world_begin((uint64_t)fault + 1);
    world_ask();
    struct message block = block_of(piggybacked(0x45), 2, 1);
    deliver(&block);
    block = block_of(piggybacked(0x45), 2, fault == 0 ? 2 : 1); /* of another body */
    if (fault == 1) { /* one of 16 bytes is missing */
      world.device.used += 16;
      block = block_of(piggybacked(0x45), 0, 1);
      world.device.used -= 16;
    }
    if (fault == 2) block.length--; /* shorter than it says */
    if (fault == 3) block.bytes[block.length++] = 0;
    if (fault == 4) { /* no Block2 option */
      block = piggybacked(0x45);
      add_payload(&block, certificate_cbor + 64, 64);
    }
    second_block_is_refused(block);
  }
}

void an_answer_that_is_too_long_is_refused(void) {
  uint8_t zeros[CD_ANSWER_MAX + 1] = {0};
  world_ask();
  struct message answer = piggybacked(0x45);
  add_payload(&answer, zeros, sizeof zeros);
  CHECK(deliver(&answer) == CD_WAITING && world_report().reason == CD_BAD_ANSWER);

  world_begin(2);
  world_ask();
  for (size_t at = 0; at <= CD_ANSWER_MAX; at += 64) {
    CHECK(world.device.state == CD_ASKING);
    struct message block = piggybacked(0x45);
    add_option(&block, 23, at / 64 << 4 | 8 | 2, 2);
    add_payload(&block, zeros, 64);
    deliver(&block);
  }
  CHECK(world.device.state == CD_WAITING && world_report().reason == CD_BAD_ANSWER);
}

void options_that_must_be_understood_are_refused(void) {
  struct {
    uint32_t number;
    uint64_t value;
    size_t size;
  } options[] = {{65001, 0, 0}, {23, 7, 1}, {23, 0, 4}, {9, 1, 1}, {27, 1, 1}};
  for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
    world_begin(i + 1);
    world_ask();
    struct message answer = message_with(CD_ACK, 0x45, world.device.message_id, world.device.token);
    add_option(&answer, options[i].number, options[i].value, options[i].size);
    answer = certificate_in(answer);
    CHECK(deliver(&answer) == CD_WAITING && world_report().reason == CD_BAD_ANSWER && world.saves == 0);
  }
  /* Elective ones are skipped, whatever their length. */
  world_begin(9);
  world_ask();
  struct message answer = message_with(CD_ACK, 0x45, world.device.message_id, world.device.token);
  add_option(&answer, 12, 60, 1);
  add_option(&answer, 14, 0xffffffffff, 5);
  add_option(&answer, 2048, 0, 0);
  add_option(&answer, 65000, 1, 8);
  answer = certificate_in(answer);
  CHECK(deliver(&answer) == CD_DONE);
}

void a_certificate_in_another_format_is_refused(void) {
  world_ask();
  struct message answer = message_with(CD_ACK, 0x45, world.device.message_id, world.device.token);
  add_option(&answer, 12, 50, 1);
  answer = certificate_in(answer);
  CHECK(deliver(&answer) == CD_WAITING && world_report().reason == CD_BAD_ANSWER);
}

void an_answer_without_a_certificate_is_refused(void) {
  static const char *const payloads[] = {
      "\xa2\x6aproductKey\x61x\x6a" "deviceName\x61y",                          /* no secret */
      "\xa3\x6aproductKey\x60\x6a" "deviceName\x61y\x6c" "deviceSecret\x61z", /* empty */
      "\x80", "\x60",
  };
  for (size_t i = 0; i < sizeof payloads / sizeof payloads[0]; i++) {
    world_begin(i + 1);
    world_ask();
    struct message answer = piggybacked(0x45);
    add_payload(&answer, payloads[i], strlen(payloads[i]));
    CHECK(deliver(&answer) == CD_WAITING && world_report().reason == CD_BAD_ANSWER && world.saves == 0);
  }
  world_begin(9);
  world_ask();
  struct message answer = piggybacked(0x45); /* no payload at all */
  CHECK(deliver(&answer) == CD_WAITING && world_report().reason == CD_BAD_ANSWER);
}

void nothing_is_taken_before_it_has_asked(void) {
  world.connects_at_once = false;
  world_start();
  world_until_next_session(30 * SECONDS);
  struct message answer = certificate_in(piggybacked(0x45));
  CHECK(deliver(&answer) == CD_CONNECTING && world.saves == 0 && world.sent_count == 0);
}

void a_stopped_device_holds_no_secret(void) {
  world_ask();
  struct message answer = certificate_in(separate(0x45, 7));
  deliver(&answer);
  cd_stop(&world.device);
  CHECK(world.closed == 1);
  for (size_t i = 0; i < sizeof world.device; i++) CHECK(((const uint8_t *)&world.device)[i] == 0);
}
