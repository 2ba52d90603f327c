/* A whole device without an operating system: gets an address, fetches its certificate, stores it,
 * and signs in over MQTT. After a restart it signs in with the stored certificate. */
#include "arguments.h"
#include "board.h"
#include "flash.h"
#include "net.h"
#include "print.h"
#include "semihosting.h"

#include <certdist.h>
#include <certdist_lwip.h>
#include <lwip/apps/mqtt.h>
#include <lwip/apps/mqtt_priv.h>
#include <lwip/dns.h>
#include <lwip/netif.h>
#include <lwip/sys.h>
#include <lwip/timeouts.h>
#include <string.h>

/* The Makefile names the DTLS stack. */
#define JOINED(a, b) a##b
#define NAMED(a, b) JOINED(a, b)
#define DTLS NAMED(cd_dtls_, STACK)
#define HMAC NAMED(cd_hmac_, STACK)

enum { OUT_OF_PATIENCE = 2 };
enum { FIRST_SIGN_IN_DELAY_MS = 2000, LONGEST_SIGN_IN_DELAY_MS = 600000, KEEP_ALIVE_S = 60 };

static struct cd_device device;
static struct cd_lwip lwip = {.load = cd_flash_load, .save = cd_flash_save, .store = &flash};
static struct cd_settings settings;
static uint8_t key[CD_KEY_MAX];

static mqtt_client_t mqtt;
static struct cd_sign_in sign_in;
static uint32_t sign_in_delay_ms = FIRST_SIGN_IN_DELAY_MS;
static bool signed_in;

static const char *const state_names[] = {
    [CD_WAITING] = "waiting",         [CD_CONNECTING] = "connecting", [CD_ASKING] = "asking",
    [CD_REGISTERING] = "registering", [CD_STORING] = "storing",       [CD_DONE] = "done",
    [CD_STOPPED] = "stopped",         [CD_REJECTED] = "rejected",
};

static const char *const reason_names[] = {
    [CD_NO_REASON] = "",
    [CD_ANSWERED] = "answered",
    [CD_SILENCE] = "silence",
    [CD_WRONG_KEY] = "wrong key or identity",
    [CD_SESSION_ENDED] = "session ended",
    [CD_REQUEST_REFUSED] = "request refused",
    [CD_BAD_ANSWER] = "bad answer",
    [CD_NOT_STORED] = "not stored",
    [CD_NO_RANDOM] = "no random numbers",
    [CD_BAD_SETTINGS] = "bad settings",
};

/* Prints a change of the device's state, and why it is not on its way. */
static void changed(struct cd_device *of, enum cd_state state) {
  static struct cd_report before = {.state = CD_WAITING};
  struct cd_report now;
  cd_get_report(of, &now);
  bool is_news = now.state != before.state || now.reason != before.reason || now.attempts != before.attempts;
  before = now;
  if (!is_news) return;
  print("certdist: ", state_names[state], NULL);
  if (state == CD_WAITING) print(" for ", decimal(now.wait_ms), " ms", NULL);
  bool is_on_its_way = state == CD_CONNECTING || state == CD_ASKING || state == CD_REGISTERING || state == CD_DONE;
  if (!is_on_its_way && now.reason != CD_NO_REASON) print(", ", reason_names[now.reason], NULL);
  if (!is_on_its_way && now.reason == CD_ANSWERED) {
    uint32_t detail = now.code % 32u;
    print(" ", decimal(now.code / 32u), detail < 10 ? ".0" : ".", decimal(detail), NULL);
    print(now.why[0] ? " " : "", now.why, NULL);
  }
  print("\n", NULL);
}

static void sign_in_later(void);

static void sign_in_ended(mqtt_client_t *client, void *unused, mqtt_connection_status_t status) {
  (void)client, (void)unused;
  if (status == MQTT_CONNECT_ACCEPTED) {
    print("mqtt: signed in\n", NULL);
    signed_in = true;
    return;
  }
  print("mqtt: not signed in, status ", decimal((uint32_t)status), "\n", NULL);
  sign_in_later();
}

static void connect_to(const ip_addr_t *address) {
  struct mqtt_connect_client_info_t info = {.client_id = sign_in.client_id,
                                            .client_user = sign_in.user_name,
                                            .client_pass = sign_in.password,
                                            .keep_alive = KEEP_ALIVE_S};
  err_t result = mqtt_client_connect(&mqtt, address, sign_in.port, sign_in_ended, NULL, &info);
  cd_wipe(&sign_in, sizeof sign_in); /* the client has copied it */
  if (result != ERR_OK) sign_in_later();
}

static void resolved(const char *name, const ip_addr_t *address, void *unused) {
  (void)unused;
  if (address) {
    connect_to(address);
    return;
  }
  print("mqtt: ", name, " is not known\n", NULL);
  sign_in_later();
}

static void begin_sign_in(void *unused) {
  (void)unused;
  struct cd_certificate certificate;
  ip_addr_t address;
  int result = cd_get_certificate(&device, &certificate);
  if (result == 0) result = cd_sign_in(&certificate, argument("where"), false, HMAC, &sign_in);
  print("certificate: ", certificate.product_key, " ", certificate.device_name, "\n", NULL);
  cd_wipe(&certificate, sizeof certificate);
  if (result != 0) semihosting_fail("the certificate does not make a sign-in; is its host known?");
  print("mqtt: ", sign_in.host, ":", decimal(sign_in.port), "\n", NULL);
  err_t known = dns_gethostbyname(sign_in.host, &address, resolved, NULL);
  if (known == ERR_OK) connect_to(&address);
  else if (known != ERR_INPROGRESS) sign_in_later();
}

/* Tries again, each time later: a cloud that restarts is not met by all devices at once. */
static void sign_in_later(void) {
  sys_timeout(sign_in_delay_ms / 2 + certdist_lwip_random() % sign_in_delay_ms, begin_sign_in, NULL);
  sign_in_delay_ms = LWIP_MIN(2 * sign_in_delay_ms, LONGEST_SIGN_IN_DELAY_MS);
}

static uint8_t digit_of(char character) {
  return (uint8_t)(character <= '9' ? character - '0' : (character | 0x20) - 'a' + 10);
}

/* Reads what a product has in flash: who the device is, and where the server is. */
static void read_settings(void) {
  const char *hex = argument("key");
  settings.identity = argument("identity");
  settings.device_id = argument("device");
  for (; hex && hex[0] && hex[1] && settings.key_length < sizeof key; hex += 2)
    key[settings.key_length++] = (uint8_t)(digit_of(hex[0]) << 4 | digit_of(hex[1]));
  settings.key = key;
  settings.first_delay_ms = argument_number("first_delay", 0);
  settings.retry_ms = argument_number("retry", 0);
  settings.wrong_key_ms = argument_number("wrong_key", 0);
  settings.handshake_ms = argument_number("handshake", 0);
  settings.operator_ms = argument_number("operator", 0);
  const char *server = argument("server");
  if (!server || !ipaddr_aton(server, &lwip.server)) semihosting_fail("server=ADDRESS is missing");
  lwip.server_port = (uint16_t)argument_number("port", 5684);
  lwip.changed = changed;
}

int main(void) {
  arguments_read();
  read_settings();
  flash_open(argument("store"), argument_number("cut", 0));
  net_set_speed(argument_number("speed", 1));

  const uint8_t mac[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
  net_start(mac);
  uint32_t patience_ms = argument_number("patience", 60000);
  while (!net_has_address() && clock_ms() < patience_ms) net_poll();
  print("network: ", ipaddr_ntoa(netif_ip_addr4(netif_default)), "\n", NULL);

  (void)net_address_changed();
  if (cd_lwip_start(&lwip, &device, &settings, &DTLS) == CD_REJECTED)
    semihosting_fail("identity or key is missing, or too long for the DTLS stack");
  bool begun = false;
  while (!signed_in && clock_ms() < patience_ms) {
    net_poll();
    if (net_address_changed()) cd_lwip_network_changed(&lwip);
    struct cd_report report;
    cd_get_report(&device, &report);
    if (report.state == CD_DONE && !begun) {
      begun = true;
      begin_sign_in(NULL);
    }
  }
  print("memory: stack ", decimal(stack_used()), ", heap ", decimal(heap_used()), "\n", NULL);
  return signed_in ? 0 : OUT_OF_PATIENCE;
}
