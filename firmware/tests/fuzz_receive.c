/* Fuzzes what a device receives and what its store returns. With libFuzzer, it is steered by
 * coverage; without, `main` makes inputs from a seed:
 *
 *   fuzz_receive [ROUNDS [SEED]]
 *
 * An input is a list of steps. Each starts with a byte: its low two bits choose the step, the
 * others how long its data is. */
#include "world.h"

#include <time.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

void world_failed(const char *file, int line, const char *condition) {
  fprintf(stderr, "failed: %s:%d: %s\n", file, line, condition);
  abort();
}

/* What holds whatever was received. */
static void check(void) {
  struct cd_report report = world_report();
  struct cd_certificate certificate;
  CHECK(report.state <= CD_REJECTED && report.reason <= CD_BAD_SETTINGS);
  CHECK(memchr(report.why, 0, sizeof report.why));
  CHECK(world.device.used <= CD_ANSWER_MAX);
  CHECK(world.opened - world.closed == (world.device.session ? 1 : 0));
  CHECK((report.state == CD_DONE) == (cd_get_certificate(&world.device, &certificate) == 0));
  if (report.state != CD_DONE) return;
  /* What is done is stored, and can sign in or is refused. */
  CHECK(cd_record_read(world.record, (size_t)world.record_length, &certificate) == 0);
  struct cd_sign_in sign_in;
  if (cd_sign_in(&certificate, "cn-shanghai", true, cd_hmac_mbedtls, &sign_in) == 0)
    CHECK(strlen(sign_in.password) == 64 && sign_in.port > 0);
}

/* A message with the right head, so that fuzzing gets to what is behind it. */
static void deliver_answer(const uint8_t *data, size_t size, bool is_separate) {
  struct message message = is_separate ? message_with(CD_CON, 0x45, next_id(), world.device.token)
                                       : message_with(CD_ACK, 0x45, world.device.message_id, world.device.token);
  if (size > 0) message.bytes[1] = data[0] == 0 ? 0x45 : data[0];
  if (size > 1) {
    memcpy(message.bytes + message.length, data + 1, size - 1);
    message.length += size - 1;
  }
  deliver(&message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  world_begin(1);
  if (size > 0 && data[0] & 1) world.settings.block_size = 32;
  if (size > 0 && data[0] & 2) {
    /* The store returns anything. */
    world.record_length = (int)(size < CD_RECORD_MAX ? size : CD_RECORD_MAX);
    memcpy(world.record, data, (size_t)world.record_length);
  }
  world_start();
  check();
  for (size_t at = 1; at < size;) {
    uint8_t step = data[at++];
    size_t length = (size_t)(step >> 2) * 4;
    if (length > size - at) length = size - at;
    switch (step & 3) {
      case 0: world_pass((uint64_t)(step >> 2) * (step >> 2) * 100); break;
      case 1: world_deliver(data + at, length); break;
      default: deliver_answer(data + at, length, (step & 3) == 3); break;
    }
    if ((step & 3) != 0) at += length;
    check();
  }
  cd_stop(&world.device);
  CHECK(world.opened == world.closed);
  return 0;
}

#ifndef LIBFUZZER
/* A copy of a valid answer with some changes, or noise. */
static size_t make_input(uint8_t *input, size_t room) {
  size_t size = 0;
  input[size++] = (uint8_t)world_random();
  while (size + 300 < room && world_random() % 8 != 0) {
    uint8_t payload[256];
    size_t length = 0, changes = world_random() % 4;
    payload[length++] = world_random() % 2 ? 0x45 : (uint8_t)world_random();
    if (world_random() % 2) {
      static const uint8_t block[] = {0xc1, 60, 0xb1};
      memcpy(payload + length, block, sizeof block);
      length += sizeof block;
      payload[length++] = (uint8_t)world_random();
    }
    payload[length++] = 0xff;
    size_t from = world_random() % 2 ? 0 : (world_random() % 8) * 16;
    size_t left = certificate_cbor_length - from, some = world_random() % 2 ? left : world_random() % (left + 1);
    memcpy(payload + length, certificate_cbor + from, some);
    length += some;
    for (; changes > 0; changes--) payload[world_random() % length] = (uint8_t)world_random();
    length = length / 4 * 4;
    input[size++] = (uint8_t)(length / 4 << 2 | world_random() % 4);
    memcpy(input + size, payload, length);
    size += length;
  }
  return size;
}

int main(int argc, char **argv) {
  unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 100000;
  unsigned long long seed = argc > 2 ? strtoull(argv[2], NULL, 10) : (unsigned long long)time(NULL);
  printf("%lu rounds, seed %llu\n", rounds, seed);
  fflush(stdout);
  world_begin(seed);
  uint64_t random = world_random();
  for (unsigned long round = 0; round < rounds; round++) {
    static uint8_t input[4096];
    world.random = random;
    size_t size = make_input(input, sizeof input);
    random = world_random();
    uint8_t *copy = (uint8_t *)malloc(size);
    memcpy(copy, input, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
  }
  return 0;
}
#endif
