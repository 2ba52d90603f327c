/* Calls the whole interface, so that the linker keeps what a firmware would. `make part` links it
 * without a board and a network, for SIZE.md. It never runs. */
#include <certdist.h>

#define JOINED(a, b) a##b
#define NAMED(a, b) JOINED(a, b)
#define DTLS NAMED(cd_dtls_, STACK)
#define HMAC NAMED(cd_hmac_, STACK)
#define cd_hmac_none NULL

static struct cd_device device;

int cd_random(void *out, size_t length) { return (void)out, (void)length, 0; }

__attribute__((used)) void *_sbrk(ptrdiff_t more) { return (void)more, (void *)-1; }

/* Everything that a firmware decides is an argument, so that nothing is left out because it is known. */
struct choices {
  const struct cd_settings *settings;
  const struct cd_port *port;
  void *datagram, *flash;
  size_t length;
  const char *where;
  bool tls;
};

int part(const struct choices *chosen, struct cd_report *report, struct cd_certificate *certificate,
         struct cd_sign_in *sign_in) {
  cd_start(&device, chosen->settings, chosen->port, &DTLS);
  cd_receive(&device, chosen->datagram, cd_wait_ms(&device));
  cd_poll(&device);
  cd_network_changed(&device);
  cd_get_report(&device, report);
  cd_forget(&device);
  cd_stop(&device);
  return cd_get_certificate(&device, certificate) +
         cd_sign_in(certificate, chosen->where, chosen->tls, HMAC, sign_in) +
         cd_flash_load(chosen->flash, chosen->datagram, chosen->length) +
         cd_flash_save(chosen->flash, chosen->datagram, chosen->length);
}
