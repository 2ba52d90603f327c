#include "net.h"

#include "board.h"
#include "semihosting.h"

#include <lwip/dhcp.h>
#include <lwip/etharp.h>
#include <lwip/init.h>
#include <lwip/netif.h>
#include <lwip/timeouts.h>
#include <netif/ethernet.h>
#include <string.h>

#if ETH_PAD_SIZE != FRAME_PADDING
#error "the drivers pad frames as lwIP does"
#endif

/* The most frames that are passed on before timers run. */
enum { FRAMES_AT_ONCE = 8 };
enum { MTU = FRAME_MAX - FRAME_PADDING - SIZEOF_ETH_HDR };

static struct netif interface;
static uint32_t clock_speed = 1;

void net_set_speed(uint32_t speed) { clock_speed = speed; }

uint32_t sys_now(void) { return clock_ms() * clock_speed; }

static err_t send_frame(struct netif *netif, struct pbuf *frame) {
  (void)netif;
  static uint32_t words[(FRAME_MAX + 3) / 4];
  if (frame->tot_len > FRAME_MAX) return ERR_BUF;
  pbuf_copy_partial(frame, words, frame->tot_len, 0);
  return board_net_send(words, frame->tot_len) ? ERR_OK : ERR_IF;
}

static err_t start_interface(struct netif *netif) {
  netif->name[0] = 'e';
  netif->name[1] = 'n';
  netif->mtu = MTU;
  netif->flags = NETIF_FLAG_BROADCAST | NETIF_FLAG_ETHARP | NETIF_FLAG_ETHERNET | NETIF_FLAG_LINK_UP;
  netif->output = etharp_output;
  netif->linkoutput = send_frame;
  netif->hwaddr_len = ETH_HWADDR_LEN;
  memcpy(netif->hwaddr, netif->state, ETH_HWADDR_LEN);
  board_net_start(netif->hwaddr);
  return ERR_OK;
}

void net_start(const uint8_t mac[6]) {
  static uint8_t address[ETH_HWADDR_LEN];
  memcpy(address, mac, sizeof address);
  lwip_init();
  netif_add(&interface, NULL, NULL, NULL, address, start_interface, ethernet_input);
  netif_set_default(&interface);
  netif_set_up(&interface);
  dhcp_start(&interface);
}

bool net_has_address(void) { return dhcp_supplied_address(&interface); }

bool net_address_changed(void) {
  static ip4_addr_t known;
  bool has_changed = !ip4_addr_eq(&known, netif_ip4_addr(&interface));
  known = *netif_ip4_addr(&interface);
  return has_changed;
}

/* Reads a frame from the driver into lwIP's buffers. Returns NULL if there is no room for it. */
static struct pbuf *read_frame(size_t length) {
  struct pbuf *frame = length <= FRAME_MAX ? pbuf_alloc(PBUF_RAW, (uint16_t)length, PBUF_POOL) : NULL;
  /* A buffer of the pool has whole words, so the last word of a frame fits, too. */
  for (struct pbuf *part = frame; part; part = part->next)
    for (size_t at = 0; at < part->len; at += 4) {
      uint32_t word = board_net_read();
      memcpy((uint8_t *)part->payload + at, &word, sizeof word);
    }
  board_net_end();
  return frame;
}

void net_poll(void) {
  size_t length = 0;
  for (int frames = 0; frames < FRAMES_AT_ONCE && (length = board_net_begin()) != 0; frames++) {
    struct pbuf *frame = read_frame(length);
    if (frame && interface.input(frame, &interface) != ERR_OK) pbuf_free(frame);
  }
  sys_check_timeouts();
  if (length == 0) clock_sleep();
}

void certdist_lwip_assertion_failed(const char *message) { semihosting_fail(message); }
