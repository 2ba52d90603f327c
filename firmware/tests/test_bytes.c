/* Damaged answers: every prefix, every changed bit, every shorter and longer payload. */
#include "world.h"

static struct message answers[4];

static void make_answers(void) {
  answers[0] = piggybacked(0x45);
  add_payload(&answers[0], certificate_cbor, certificate_cbor_length);
  answers[1] = separate(0x45, 0x4321);
  add_payload(&answers[1], certificate_cbor, certificate_cbor_length);
  answers[2] = message_with(CD_ACK, 0x45, world.device.message_id, world.device.token);
  add_option(&answers[2], 4, 0x0102030405060708, 8);
  add_option(&answers[2], 12, 60, 1);
  add_option(&answers[2], 23, 0x0e, 1); /* more, of 1,024 */
  add_payload(&answers[2], certificate_cbor, 64);
  answers[3] = piggybacked(0xa3);
  add_option(&answers[3], 14, 30, 1);
  add_payload(&answers[3], "\xa1\x20\x65later", 8);
}

/* The same device, which has asked, for each try. */
static void ask_again(void) {
  world_begin(1);
  world_ask();
  make_answers();
}

static void is_sound(void) {
  struct cd_report report = world_report();
  struct cd_certificate certificate;
  CHECK(report.state <= CD_REJECTED && report.reason <= CD_BAD_SETTINGS);
  CHECK(world.device.used <= CD_ANSWER_MAX);
  /* Done only with what is in the store. */
  CHECK((report.state == CD_DONE) == (cd_get_certificate(&world.device, &certificate) == 0));
  if (report.state == CD_DONE)
    CHECK(cd_record_read(world.record, (size_t)world.record_length, &certificate) == 0 && certificate.device_secret[0]);
  /* It goes on in any case. */
  world_pass(10 * MINUTES);
}

void every_prefix_of_an_answer_is_survived(void) {
  for (int i = 0; i < 4; i++) {
    ask_again();
    size_t length = answers[i].length;
    for (size_t prefix = 0; prefix < length; prefix++) {
      ask_again();
      world_deliver(answers[i].bytes, prefix);
      CHECK(world.device.state != CD_DONE && world.saves == 0);
      is_sound();
    }
  }
}

void every_changed_bit_of_an_answer_is_survived(void) {
  for (int i = 0; i < 4; i++) {
    ask_again();
    size_t bits = answers[i].length * 8;
    for (size_t bit = 0; bit < bits; bit++) {
      ask_again();
      answers[i].bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
      deliver(&answers[i]);
      is_sound();
    }
  }
}

void bytes_after_an_answer_are_refused(void) {
  ask_again();
  answers[0].length++;
  CHECK(deliver(&answers[0]) == CD_WAITING && world_report().reason == CD_BAD_ANSWER);
}
