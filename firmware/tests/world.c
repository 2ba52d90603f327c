#include "world.h"

struct world world;

const uint8_t certificate_cbor[] =
    "\xa4\x6aproductKey\x6b" "a1BwAGVxyz2\x6a" "deviceName\x68PLUG0001\x6c" "deviceSecret\x78\x20"
    "9d85c99e0123456789abcdef01234567\x64host\x78\x25iot-06z00abc.mqtt.iothub.aliyuncs.com";
const size_t certificate_cbor_length = sizeof certificate_cbor - 1;

uint64_t world_random(void) {
  world.random ^= world.random << 13;
  world.random ^= world.random >> 7;
  world.random ^= world.random << 17;
  return world.random;
}

int cd_random(void *out, size_t length) {
  uint8_t *at = (uint8_t *)out;
  if (world.no_random) return -1;
  while (length-- > 0) *at++ = (uint8_t)(world_random() >> 32);
  return 0;
}

static uint32_t now_ms(void *arg) {
  (void)arg;
  return world.clock_offset + (uint32_t)world.now;
}

static int send_datagram(void *arg, const void *datagram, size_t length) {
  int slot = world.sent_count++ % SENT_MAX;
  (void)arg;
  CHECK(length <= sizeof world.sent[0].bytes);
  memcpy(world.sent[slot].bytes, datagram, length);
  world.sent[slot].length = length;
  world.sent[slot].at = world.now;
  return 0;
}

static int load(void *arg, void *record, size_t room) {
  (void)arg;
  CHECK((size_t)world.record_length <= room);
  if (world.record_length > 0) memcpy(record, world.record, (size_t)world.record_length);
  return world.record_length;
}

static int save(void *arg, const void *record, size_t length) {
  (void)arg;
  CHECK(length <= CD_RECORD_MAX);
  world.saves++;
  world.sent_at_save = world.sent_count;
  world.state_at_save = (enum cd_state)world.device.state;
  if (world.failing_saves > 0) {
    world.failing_saves--;
    return -1;
  }
  if (world.forgets) return 0;
  if (length > 0) memcpy(world.record, record, length);
  world.record_length = (int)length;
  return 0;
}

/* --- The back end --- */

static int fake_open(struct cd_device *device) {
  world.opened++;
  world.opened_at = world.now;
  world.flights = 0;
  if (world.cannot_open) return -1;
  if (world.connects_at_once) cd_dtls_connected(device);
  return 0;
}

static void fake_receive(struct cd_device *device, uint8_t *datagram, size_t length) {
  cd_dtls_message(device, datagram, length);
}

/* A flight that is repeated every 700 ms. */
static uint32_t fake_timer(struct cd_device *device) {
  (void)device;
  uint64_t passed = world.now - world.opened_at;
  if (passed >= 700 * (uint64_t)(world.flights + 1)) world.flights++;
  return (uint32_t)(700 * (uint64_t)(world.flights + 1) - passed);
}

static int fake_send(struct cd_device *device, uint8_t *message, size_t length) {
  CHECK(world.opened > world.closed);
  return cd_dtls_send_datagram(device, message, length);
}

static void fake_close(struct cd_device *device) {
  (void)device;
  world.closed++;
  CHECK(world.opened >= world.closed);
}

static bool fake_moves(struct cd_device *device) {
  (void)device;
  return world.moves;
}

static const struct cd_dtls fake = {fake_open, fake_receive, fake_timer, fake_send, fake_close, fake_moves,
                                    60,        50};

/* --- The world --- */

void world_begin(uint64_t seed) {
  static const uint8_t key[16] = "plug-batch-7-key";
  memset(&world, 0, sizeof world);
  world.random = seed * 0x9e3779b97f4a7c15u + 1;
  world_random();
  world.connects_at_once = true;
  world.settings.identity = "plug-batch-7";
  world.settings.key = key;
  world.settings.key_length = sizeof key;
  world.settings.device_id = "PLUG0001";
  world.settings.id_kind = "sn";
  world.port.now_ms = now_ms;
  world.port.send = send_datagram;
  world.port.load = load;
  world.port.save = save;
}

enum cd_state world_start(void) {
  return cd_start(&world.device, &world.settings, &world.port, &fake);
}

void world_ask(void) {
  world_start();
  world_until_next_session(30 * SECONDS);
  CHECK(world.device.state == CD_ASKING);
}

void world_pass(uint64_t ms) {
  uint64_t end = world.now + ms;
  int idle = 0;
  while (idle < 5) {
    uint32_t wait = cd_wait_ms(&world.device);
    idle = wait == 0 ? idle + 1 : 0;
    if (wait > end - world.now) {
      world.now = end;
      return;
    }
    world.now += wait;
    cd_poll(&world.device);
  }
  CHECK(idle < 5); /* a device that always has something to do is stuck */
}

uint64_t world_until_next_session(uint64_t most) {
  int opened = world.opened;
  uint64_t start = world.now;
  while (world.opened == opened) {
    uint32_t wait = cd_wait_ms(&world.device);
    CHECK(wait != CD_FOREVER && world.now + wait - start <= most);
    world_pass(wait);
  }
  return world.now - start;
}

/* A copy of exactly this size lets the sanitizer see each byte that is read too much. */
enum cd_state world_deliver(const uint8_t *bytes, size_t length) {
  uint8_t *copy = (uint8_t *)malloc(length ? length : 1);
  if (length > 0) memcpy(copy, bytes, length);
  enum cd_state state = cd_receive(&world.device, copy, length);
  free(copy);
  return state;
}

struct cd_report world_report(void) {
  struct cd_report report;
  cd_get_report(&world.device, &report);
  return report;
}

const uint8_t *last(void) {
  CHECK(world.sent_count > 0);
  return world.sent[(world.sent_count - 1) % SENT_MAX].bytes;
}

uint16_t id_of(const uint8_t *message) {
  return (uint16_t)(message[2] << 8 | message[3]);
}

struct message message_with(uint8_t type, uint8_t code, uint16_t id, uint32_t token) {
  struct message message;
  memset(&message, 0, sizeof message);
  message.bytes[0] = (uint8_t)(0x44 | type << 4);
  message.bytes[1] = code;
  message.bytes[2] = (uint8_t)(id >> 8);
  message.bytes[3] = (uint8_t)id;
  for (int i = 0; i < 4; i++) message.bytes[4 + i] = (uint8_t)(token >> 8 * i);
  message.length = 8;
  if (code == 0) {
    message.bytes[0] &= 0xf0;
    message.length = 4;
  }
  return message;
}

void add_option(struct message *message, uint32_t number, uint64_t value, size_t size) {
  uint32_t delta = number - message->option;
  message->option = number;
  message->bytes[message->length++] = (uint8_t)((delta < 13 ? delta : delta < 269 ? 13 : 14) << 4 | size);
  if (delta >= 269) message->bytes[message->length++] = (uint8_t)((delta - 269) >> 8);
  if (delta >= 13) message->bytes[message->length++] = (uint8_t)(delta - (delta < 269 ? 13 : 269));
  while (size-- > 0) message->bytes[message->length++] = (uint8_t)(value >> 8 * size);
}

void add_payload(struct message *message, const void *payload, size_t length) {
  message->bytes[message->length++] = 0xff;
  memcpy(message->bytes + message->length, payload, length);
  message->length += length;
}

struct message piggybacked(uint8_t code) {
  struct message message = message_with(CD_ACK, code, world.device.message_id, world.device.token);
  if (code == 0) return message;
  add_option(&message, 12, code == 0x45 ? 60 : 257, code == 0x45 ? 1 : 2);
  return message;
}

struct message separate(uint8_t code, uint16_t id) {
  struct message message = message_with(CD_CON, code, id, world.device.token);
  add_option(&message, 12, code == 0x45 ? 60 : 257, code == 0x45 ? 1 : 2);
  return message;
}

enum cd_state deliver(const struct message *message) {
  return world_deliver(message->bytes, message->length);
}

bool has_certificate(void) {
  struct cd_certificate in_device, in_store;
  memset(&in_store, 0, sizeof in_store);
  return cd_get_certificate(&world.device, &in_device) == 0 &&
         cd_record_read(world.record, (size_t)world.record_length, &in_store) == 0 &&
         memcmp(&in_device, &in_store, sizeof in_device) == 0 && strcmp(in_device.product_key, "a1BwAGVxyz2") == 0 &&
         strcmp(in_device.device_name, "PLUG0001") == 0 &&
         strcmp(in_device.device_secret, "9d85c99e0123456789abcdef01234567") == 0 &&
         strcmp(in_device.host, "iot-06z00abc.mqtt.iothub.aliyuncs.com") == 0;
}

uint16_t next_id(void) {
  return ++world.server_id;
}
