/* Fetches a certificate on a POSIX system, stores it in a file, and prints what the device does and
 * how it signs in. The device secret and the password go to files only.
 *
 *   fetch HOST PORT IDENTITY KEY-FILE DEVICE-ID RECORD [NAME=VALUE...]
 *
 * KEY-FILE has the key as hex digits. DEVICE-ID is - if the identity is the device. A second run
 * finds the record and sends nothing. NAME is a delay of struct cd_settings in ms, without _ms
 * (first_delay, retry, ...), `block_size`, `patience` (ms, default 300000), `kind`, `where`, `tls`
 * (0 or 1), or `password` (a file for the MQTT password).
 *
 * `make -C firmware fetch` builds it, and defines DTLS and HMAC: the back end.
 *
 * Exit status: 0 done, 1 not done within the patience, 2 wrong usage. */
#include "cd_posix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const states[] = {"waiting", "connecting", "asking", "registering", "storing", "done", "stopped", "rejected"};
static const char *const reasons[] = {"",           "answered",         "silence",    "wrong key", "session ended",
                                      "request refused", "bad answer", "not stored", "no random", "bad settings"};

/* Reads hex digits. Returns the number of bytes, or 0. */
static size_t read_key(const char *path, uint8_t key[CD_KEY_MAX]) {
  char digits[2 * CD_KEY_MAX + 2];
  int length = cd_file_load(path, digits, sizeof digits - 1);
  if (length <= 0) return 0;
  digits[length] = 0;
  size_t count = strcspn(digits, "\r\n");
  digits[count] = 0;
  size_t bytes = count / 2;
  if (count % 2 != 0 || bytes > CD_KEY_MAX || strspn(digits, "0123456789abcdefABCDEF") != count) bytes = 0;
  for (size_t i = 0; i < bytes; i++) {
    char pair[3] = {digits[2 * i], digits[2 * i + 1], 0};
    key[i] = (uint8_t)strtoul(pair, NULL, 16);
  }
  cd_wipe(digits, sizeof digits);
  return bytes;
}

static void print_report(const struct cd_device *device, uint32_t ms) {
  struct cd_report report;
  cd_get_report(device, &report);
  printf("%u.%03u s: %s", (unsigned)(ms / 1000), (unsigned)(ms % 1000), states[report.state]);
  if (report.code) printf(", answer %d.%02d", report.code >> 5, report.code & 31);
  if (report.why[0]) printf(" \"%s\"", report.why);
  if (report.reason != CD_NO_REASON && report.reason != CD_ANSWERED) printf(", %s", reasons[report.reason]);
  if (report.dtls_alert) printf(", alert %d", report.dtls_alert);
  if (report.state != CD_DONE && report.wait_ms != CD_FOREVER)
    printf(", %u.%03u s to wait", (unsigned)(report.wait_ms / 1000), (unsigned)(report.wait_ms % 1000));
  printf(", attempt %u\n", report.attempts);
  fflush(stdout);
}

int main(int argc, char **argv) {
  static struct cd_posix posix;
  static struct cd_device device;
  static struct cd_settings settings;
  static uint8_t key[CD_KEY_MAX];
  const char *where = NULL, *password_file = NULL;
  uint32_t patience = 300000, tls = 0, block_size = 0;
  if (argc < 7) {
    fprintf(stderr, "usage: %s HOST PORT IDENTITY KEY-FILE DEVICE-ID RECORD [NAME=VALUE...]\n", argv[0]);
    return 2;
  }
  const struct {
    const char *name;
    uint32_t *value;
  } numbers[] = {
      {"first_delay=", &settings.first_delay_ms}, {"retry=", &settings.retry_ms},
      {"longest_retry=", &settings.longest_retry_ms}, {"wrong_key=", &settings.wrong_key_ms},
      {"operator=", &settings.operator_ms}, {"longest_operator=", &settings.longest_operator_ms},
      {"handshake=", &settings.handshake_ms}, {"answer=", &settings.answer_ms},
      {"patience=", &patience}, {"tls=", &tls}, {"block_size=", &block_size},
  };
  for (int i = 7; i < argc; i++) {
    bool known = false;
    for (size_t j = 0; j < sizeof numbers / sizeof numbers[0]; j++) {
      size_t length = strlen(numbers[j].name);
      if (strncmp(argv[i], numbers[j].name, length) != 0) continue;
      *numbers[j].value = (uint32_t)strtoul(argv[i] + length, NULL, 10);
      known = true;
    }
    const char *value = strchr(argv[i], '=');
    if (known || !value) {
    } else if (strncmp(argv[i], "kind=", 5) == 0) {
      settings.id_kind = value + 1, known = true;
    } else if (strncmp(argv[i], "where=", 6) == 0) {
      where = value + 1, known = true;
    } else if (strncmp(argv[i], "password=", 9) == 0) {
      password_file = value + 1, known = true;
    }
    if (!known) {
      fprintf(stderr, "%s: unknown setting %s\n", argv[0], argv[i]);
      return 2;
    }
  }
  settings.identity = argv[3];
  settings.key = key;
  settings.key_length = read_key(argv[4], key);
  settings.device_id = strcmp(argv[5], "-") == 0 ? NULL : argv[5];
  settings.block_size = (uint16_t)block_size;
  if (settings.key_length == 0) {
    fprintf(stderr, "%s: %s has no key of 2 to 128 hex digits\n", argv[0], argv[4]);
    return 2;
  }

  cd_posix_init(&posix, argv[1], argv[2], argv[6]);
  enum cd_state state = cd_start(&device, &settings, &posix.port, &DTLS);
  uint32_t start = posix.port.now_ms(posix.port.arg), passed = 0;
  print_report(&device, 0);
  while (cd_wait_ms(&device) != CD_FOREVER && passed < patience) {
    /* In small steps, so that each state is seen. */
    enum cd_state next = cd_socket_run(&posix.socket, &device, 1);
    passed = posix.port.now_ms(posix.port.arg) - start;
    if (next != state) print_report(&device, passed);
    state = next;
  }
  cd_socket_close(&posix.socket);

  struct cd_certificate certificate;
  struct cd_sign_in sign_in;
  int result = cd_get_certificate(&device, &certificate) == 0 ? 0 : 1;
  if (result == 0) {
    printf("productKey %s\ndeviceName %s\nhost %s\n", certificate.product_key, certificate.device_name, certificate.host);
    if (cd_sign_in(&certificate, where, tls != 0, HMAC, &sign_in) == 0) {
      printf("MQTT %s:%u\nclient ID %s\nuser name %s\n", sign_in.host, sign_in.port, sign_in.client_id, sign_in.user_name);
      if (password_file && cd_file_save(password_file, sign_in.password, strlen(sign_in.password)) < 0) {
        fprintf(stderr, "%s: cannot write %s\n", argv[0], password_file);
        result = 1;
      }
      cd_wipe(&sign_in, sizeof sign_in);
    }
  }
  cd_wipe(&certificate, sizeof certificate);
  cd_wipe(key, sizeof key);
  cd_stop(&device);
  return result;
}
