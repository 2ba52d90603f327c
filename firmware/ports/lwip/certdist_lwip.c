#include "certdist_lwip.h"

#include <lwip/pbuf.h>
#include <lwip/sys.h>
#include <lwip/timeouts.h>
#include <lwip/udp.h>
#include <string.h>

/* The longest datagram that is passed on: the longest answer in one record. */
#ifndef CD_LWIP_DATAGRAM_MAX
#define CD_LWIP_DATAGRAM_MAX (CD_ANSWER_MAX + 96)
#endif
/* lwIP compares times by their difference, so a timer must not be longer than half their range. */
#define LONGEST_TIMER_MS (24u * 60 * 60 * 1000)

static void timer(void *argument);

/* Sets lwIP's timer to the device's next step. */
static void step_is_over(struct cd_lwip *lwip, enum cd_state state) {
  sys_untimeout(timer, lwip);
  uint32_t wait_ms = cd_wait_ms(lwip->device);
  if (wait_ms != CD_FOREVER) sys_timeout(LWIP_MIN(wait_ms, LONGEST_TIMER_MS), timer, lwip);
  if (lwip->changed) lwip->changed(lwip->device, state);
}

static void timer(void *argument) {
  struct cd_lwip *lwip = (struct cd_lwip *)argument;
  step_is_over(lwip, cd_poll(lwip->device));
}

static void received(void *argument, struct udp_pcb *pcb, struct pbuf *datagram, const ip_addr_t *address,
                     u16_t port) {
  struct cd_lwip *lwip = (struct cd_lwip *)argument;
  (void)pcb, (void)address, (void)port; /* a connected control block gets only the server's */
  static uint8_t whole[CD_LWIP_DATAGRAM_MAX];
  uint16_t length = datagram->tot_len;
  bool fits = length <= sizeof whole;
  if (fits) pbuf_copy_partial(datagram, whole, length, 0);
  pbuf_free(datagram); /* before the answer needs one */
  if (!fits) return;
  enum cd_state state = cd_receive(lwip->device, whole, length);
  cd_wipe(whole, length); /* a back end may have decrypted in place */
  step_is_over(lwip, state);
}

static uint32_t now_ms(void *argument) {
  (void)argument;
  return sys_now();
}

/* Gets a control block. If lwIP has none, or no route, the present datagram counts as lost: the
 * device retries, and its next datagram asks for a control block again. */
static bool has_control_block(struct cd_lwip *lwip) {
  if (lwip->pcb) return true;
  lwip->pcb = udp_new();
  if (!lwip->pcb) return false;
  if (udp_connect(lwip->pcb, &lwip->server, lwip->server_port) != ERR_OK) {
    udp_remove(lwip->pcb);
    lwip->pcb = NULL;
    return false;
  }
  udp_recv(lwip->pcb, received, lwip);
  return true;
}

static int send_datagram(void *argument, const void *datagram, size_t length) {
  struct cd_lwip *lwip = (struct cd_lwip *)argument;
  if (length > UINT16_MAX || !has_control_block(lwip)) return -1;
  struct pbuf *copy = pbuf_alloc(PBUF_TRANSPORT, (uint16_t)length, PBUF_RAM);
  if (!copy) return -1;
  memcpy(copy->payload, datagram, length);
  err_t sent = udp_send(lwip->pcb, copy);
  pbuf_free(copy);
  return sent == ERR_OK ? 0 : -1;
}

static int load(void *argument, void *record, size_t room) {
  const struct cd_lwip *lwip = (const struct cd_lwip *)argument;
  return lwip->load(lwip->store, record, room);
}

static int save(void *argument, const void *record, size_t length) {
  const struct cd_lwip *lwip = (const struct cd_lwip *)argument;
  return lwip->save(lwip->store, record, length);
}

enum cd_state cd_lwip_start(struct cd_lwip *lwip, struct cd_device *device, const struct cd_settings *settings,
                            const struct cd_dtls *dtls) {
  lwip->device = device;
  lwip->port.arg = lwip;
  lwip->port.now_ms = now_ms;
  lwip->port.send = send_datagram;
  lwip->port.load = load;
  lwip->port.save = save;
  lwip->pcb = NULL;
  enum cd_state state = cd_start(device, settings, &lwip->port, dtls);
  step_is_over(lwip, state);
  return state;
}

void cd_lwip_network_changed(struct cd_lwip *lwip) { step_is_over(lwip, cd_network_changed(lwip->device)); }

void cd_lwip_stop(struct cd_lwip *lwip) {
  cd_stop(lwip->device);
  sys_untimeout(timer, lwip);
  if (lwip->pcb) udp_remove(lwip->pcb);
  lwip->pcb = NULL;
}

uint32_t certdist_lwip_random(void) {
  uint32_t number;
  if (cd_random(&number, sizeof number) != 0) certdist_lwip_assertion_failed("cd_random failed");
  return number;
}
