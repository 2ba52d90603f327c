/* coapsload: a load of devices that each fetch their certificate once.
 *
 * One round is what one device does at power-on: a fresh DTLS 1.2 PSK handshake
 * (cookie exchange included), one confirmable CoAP request, its response
 * (piggybacked or separate), close_notify. Many devices run at once on one
 * thread, each on a UDP socket of its own, OpenSSL being the device's stack.
 * It prints the rounds by outcome, latency, and what the server process spent.
 *
 *   cc -O2 -o coapsload coapsload.c -lssl -lcrypto
 *   ./coapsload -p 5684 -n 20000 -c 64 -P SERVER_PID -u cert -k 000102030405060708090a0b0c0d0e0f
 *
 *   -h ADDR   server address, default 127.0.0.1       -p PORT   default 5684
 *   -n N      rounds                                  -c N      devices at once
 *   -u PATH   Uri-Path, default cert                  -m METHOD 1 GET (default), 2 POST, 5 FETCH
 *   -I FMT    identity and SN of device i, printf form, default SN%08ld
 *   -F N      first device number, default 1          -W N      wrap device numbers after N
 *   -s N      step from one device number to the next, default 1
 *   -k HEX    one PSK for all                         -K HEX    master: PSK = HMAC-SHA256(master, identity)[0..16]
 *   -S LIST   cipher suites, default PSK-AES128-CCM8  -g IDENT  group: this identity for all, SN still by -I
 *   -x MODE   payload: sn (default) {"sn": SN} as CBOR; none
 *   -P PID    server process to account for           -t S      give up on a round after S seconds, default 60
 *   -H        hold: keep every session open, report server memory per session
 *   -L S      with -H: linger S seconds before leaving
 *   -E        without extended master secret (RFC 7627), as old stacks
 *   -M        records of at most 512 bytes (max_fragment_length, RFC 6066)
 *   -b N      first source slot (127.x source addresses and ports are taken in order from it)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/hmac.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum state { FREE, HANDSHAKE, WAITING, HELD };

struct device {
  SSL *ssl;
  int fd;
  enum state state;
  long number;
  double started, resend_at;
  double resend_after;
  uint16_t mid;
  unsigned char request[512];
  int request_len;
};

static const char *host = "127.0.0.1", *path = "cert", *identity_fmt = "SN%08ld", *group, *payload_mode = "sn";
static int port = 5684, method = 1, hold, no_ems, small_records, server_pid, linger_s, ep;
static long rounds = 1000, first = 1, number_step = 1, wrap, source_slot;
static int concurrency = 64;
static double give_up = 60;
static unsigned char key[64], master[64];
static int key_len, master_len;
static SSL_CTX *ctx;
static long started, ok, by_class[8], failed_handshake, failed_timeout, failed_reset, retransmits, active;
static double *latency;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static int unhex(const char *s, unsigned char *out) {
  int n = 0;
  for (; s[0] && s[1] && n < 64; s += 2) sscanf(s, "%2hhx", &out[n++]);
  return n;
}

static long device_number(long i) { return first + (wrap ? i * number_step % wrap : i * number_step); }

static unsigned psk(SSL *ssl, const char *hint, char *identity, unsigned max_identity, unsigned char *out, unsigned max) {
  (void)hint; (void)max;
  struct device *d = SSL_get_app_data(ssl);
  if (group) snprintf(identity, max_identity, "%s", group);
  else snprintf(identity, max_identity, identity_fmt, d->number);
  if (key_len) { memcpy(out, key, key_len); return key_len; }
  unsigned char tag[32]; unsigned n = 0;
  HMAC(EVP_sha256(), master, master_len, (unsigned char *)identity, strlen(identity), tag, &n);
  memcpy(out, tag, 16);
  return 16;
}

static void account(double *user, double *sys, long *rss_kib) {
  *user = *sys = 0; *rss_kib = 0;
  if (!server_pid) return;
  char name[64], line[4096];
  snprintf(name, sizeof name, "/proc/%d/stat", server_pid);
  FILE *f = fopen(name, "r");
  if (!f) return;
  size_t n = fread(line, 1, sizeof line - 1, f);
  line[n] = 0; fclose(f);
  unsigned long u = 0, s = 0;
  char *p = strrchr(line, ')');
  if (p) sscanf(p + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &u, &s);
  double tick = 1e6 / sysconf(_SC_CLK_TCK);
  *user = u * tick; *sys = s * tick;
  snprintf(name, sizeof name, "/proc/%d/status", server_pid);
  f = fopen(name, "r");
  if (!f) return;
  while (fgets(line, sizeof line, f)) if (!strncmp(line, "VmRSS:", 6)) *rss_kib = atol(line + 6);
  fclose(f);
}

static void build_request(struct device *d) {
  unsigned char *p = d->request;
  char sn[128];
  int sn_len = snprintf(sn, sizeof sn, identity_fmt, d->number);
  d->mid = (uint16_t)(d->number * 40503u + 7);
  *p++ = 0x44; *p++ = method; *p++ = d->mid >> 8; *p++ = d->mid;
  memcpy(p, &d->number, 4); p += 4;
  int last = 0;
  char segments[256], *save = NULL;
  snprintf(segments, sizeof segments, "%s", path);
  for (char *s = strtok_r(segments, "/", &save); s; s = strtok_r(NULL, "/", &save)) {
    int n = strlen(s), delta = 11 - last;
    if (n < 13) *p++ = delta << 4 | n;
    else { *p++ = delta << 4 | 13; *p++ = n - 13; }
    memcpy(p, s, n); p += n; last = 11;
  }
  if (!strcmp(payload_mode, "sn")) {
    *p++ = (12 - last) << 4 | 1; *p++ = 60;
    *p++ = 0xff;
    *p++ = 0xa1; *p++ = 0x62; *p++ = 's'; *p++ = 'n';
    if (sn_len < 24) *p++ = 0x60 | sn_len; else { *p++ = 0x78; *p++ = sn_len; }
    memcpy(p, sn, sn_len); p += sn_len;
  }
  d->request_len = p - d->request;
}

static void start(struct device *d) {
  d->fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
  if (d->fd < 0) { perror("socket"); exit(1); }
  long slot = source_slot++;
  struct sockaddr_in a = {.sin_family = AF_INET};
  a.sin_addr.s_addr = htonl(0x7f000002 + (slot / 20000) % 250);
  a.sin_port = htons(20000 + slot % 20000);
  if (bind(d->fd, (void *)&a, sizeof a)) { a.sin_port = 0; if (bind(d->fd, (void *)&a, sizeof a)) perror("bind"); }
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  inet_pton(AF_INET, host, &to.sin_addr);
  if (connect(d->fd, (void *)&to, sizeof to)) { perror("connect"); exit(1); }
  d->number = device_number(started++);
  d->ssl = SSL_new(ctx);
  SSL_set_app_data(d->ssl, (char *)d);
  BIO *bio = BIO_new_dgram(d->fd, BIO_NOCLOSE);
  BIO_ctrl(bio, BIO_CTRL_DGRAM_SET_CONNECTED, 0, &to);
  SSL_set_bio(d->ssl, bio, bio);
  SSL_set_connect_state(d->ssl);
  DTLS_set_link_mtu(d->ssl, 1280);
  if (small_records) SSL_set_tlsext_max_fragment_length(d->ssl, TLSEXT_max_fragment_length_512);
  d->state = HANDSHAKE;
  d->started = now();
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = d};
  epoll_ctl(ep, EPOLL_CTL_ADD, d->fd, &e);
  active++;
}

static void finish(struct device *d, int goodbye) {
  if (goodbye) SSL_shutdown(d->ssl);
  SSL_free(d->ssl);
  close(d->fd);
  ERR_clear_error();
  d->ssl = NULL; d->state = FREE;
  active--;
}

static void succeed(struct device *d, int code) {
  latency[ok++] = now() - d->started;
  by_class[code >> 5]++;
  if (hold) { d->state = HELD; active--; } else finish(d, 1);
}

static void step(struct device *d) {
  if (d->state == HANDSHAKE) {
    int r = SSL_do_handshake(d->ssl);
    if (r != 1) {
      int e = SSL_get_error(d->ssl, r);
      if (e != SSL_ERROR_WANT_READ) {
        if (failed_handshake++ < 3) { fprintf(stderr, "handshake of device %ld: error %d errno %d ", d->number, e, errno); ERR_print_errors_fp(stderr); }
        finish(d, 0);
      }
      return;
    }
    build_request(d);
    SSL_write(d->ssl, d->request, d->request_len);
    d->state = WAITING; d->resend_after = 2; d->resend_at = now() + 2;
  }
  while (d->state == WAITING) {
    unsigned char m[2048];
    int n = SSL_read(d->ssl, m, sizeof m);
    if (n <= 0) {
      int e = SSL_get_error(d->ssl, n);
      if (e != SSL_ERROR_WANT_READ) { failed_reset++; finish(d, 0); }
      return;
    }
    if (n < 4) continue;
    int type = m[0] >> 4 & 3, tkl = m[0] & 15, code = m[1];
    if (type == 3) { failed_reset++; finish(d, 0); return; }
    if (code == 0) { d->resend_at = now() + 1e9; continue; } /* empty ACK: a separate response follows */
    if (tkl != 4 || n < 8 || memcmp(m + 4, &d->number, 4)) continue;
    if (type == 0) { unsigned char ack[4] = {0x60, 0, m[2], m[3]}; SSL_write(d->ssl, ack, 4); }
    succeed(d, code);
  }
}

static void tick(struct device *d, double t) {
  if (d->state == HANDSHAKE) { if (DTLSv1_handle_timeout(d->ssl) > 0) retransmits++; }
  else if (d->state == WAITING && t > d->resend_at) {
    SSL_write(d->ssl, d->request, d->request_len);
    d->resend_after *= 2; d->resend_at = t + d->resend_after; retransmits++;
  }
  if ((d->state == HANDSHAKE || d->state == WAITING) && t - d->started > give_up) { failed_timeout++; finish(d, 0); }
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  const char *suites = "PSK-AES128-CCM8";
  int o;
  while ((o = getopt(argc, argv, "h:p:n:c:u:m:I:F:W:k:K:S:g:x:P:t:HL:b:Es:M")) != -1) switch (o) {
    case 'h': host = optarg; break;
    case 'p': port = atoi(optarg); break;
    case 'n': rounds = atol(optarg); break;
    case 'c': concurrency = atoi(optarg); break;
    case 'u': path = optarg; break;
    case 'm': method = atoi(optarg); break;
    case 'I': identity_fmt = optarg; break;
    case 'F': first = atol(optarg); break;
    case 'W': wrap = atol(optarg); break;
    case 's': number_step = atol(optarg); break;
    case 'k': key_len = unhex(optarg, key); break;
    case 'K': master_len = unhex(optarg, master); break;
    case 'S': suites = optarg; break;
    case 'g': group = optarg; break;
    case 'x': payload_mode = optarg; break;
    case 'P': server_pid = atoi(optarg); break;
    case 't': give_up = atof(optarg); break;
    case 'H': hold = 1; break;
    case 'E': no_ems = 1; break;
    case 'M': small_records = 1; break;
    case 'L': linger_s = atoi(optarg); break;
    case 'b': source_slot = atol(optarg); break;
    default: return 2;
  }
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);

  ctx = SSL_CTX_new(DTLS_client_method());
  SSL_CTX_set_min_proto_version(ctx, DTLS1_2_VERSION);
  SSL_CTX_set_max_proto_version(ctx, DTLS1_2_VERSION);
  char list[256];
  snprintf(list, sizeof list, "%s:@SECLEVEL=0", suites);
  if (!SSL_CTX_set_cipher_list(ctx, list)) { ERR_print_errors_fp(stderr); return 2; }
  SSL_CTX_set_psk_client_callback(ctx, psk);
  SSL_CTX_set_options(ctx, SSL_OP_NO_QUERY_MTU | SSL_OP_NO_TICKET | (no_ems ? SSL_OP_NO_EXTENDED_MASTER_SECRET : 0));

  ep = epoll_create1(0);
  long slots = hold ? rounds : concurrency;
  struct device *devices = calloc(slots, sizeof *devices);
  latency = calloc(rounds + 1, sizeof *latency);
  double u0, s0, u1, s1; long rss0, rss1;
  account(&u0, &s0, &rss0);
  double t0 = now(), last_tick = t0;
  long next_hold = 0, next_free = 0;
  while (ok + failed_handshake + failed_timeout + failed_reset < rounds) {
    while (active < concurrency && started < rounds) {
      struct device *d;
      if (hold) d = &devices[next_hold++];
      else { while (devices[next_free % slots].state != FREE) next_free++; d = &devices[next_free++ % slots]; }
      start(d);
      step(d);
    }
    struct epoll_event events[256];
    int n = epoll_wait(ep, events, 256, 20);
    for (int i = 0; i < n; i++) { struct device *d = events[i].data.ptr; if (d->state == HANDSHAKE || d->state == WAITING) step(d); }
    double t = now();
    if (t - last_tick > 0.05) { last_tick = t; for (long i = 0; i < (hold ? next_hold : slots); i++) tick(&devices[i], t); }
  }
  double wall = now() - t0;
  account(&u1, &s1, &rss1);
  qsort(latency, ok, sizeof *latency, ascending);
  double per = ok ? ok : 1;
  printf("rounds %ld ok %ld (2.xx %ld 4.xx %ld 5.xx %ld) failed: handshake %ld timeout %ld reset %ld; retransmits %ld\n",
         rounds, ok, by_class[2], by_class[4], by_class[5], failed_handshake, failed_timeout, failed_reset, retransmits);
  printf("wall %.2f s, %.0f rounds/s, latency p50 %.2f ms p99 %.2f ms max %.1f ms\n", wall, ok / wall,
         ok ? latency[ok / 2] * 1e3 : 0, ok ? latency[ok * 99 / 100] * 1e3 : 0, ok ? latency[ok - 1] * 1e3 : 0);
  if (server_pid)
    printf("server cpu %.1f us/round (user %.1f sys %.1f); rss %ld -> %ld KiB, %.0f B/round\n",
           (u1 - u0 + s1 - s0) / per, (u1 - u0) / per, (s1 - s0) / per, rss0, rss1, (rss1 - rss0) * 1024.0 / per);
  fflush(stdout);
  if (hold && linger_s) sleep(linger_s);
  return ok == rounds ? 0 : 1;
}
