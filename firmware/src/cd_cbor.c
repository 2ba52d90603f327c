/* CBOR (RFC 8949), as far as the device needs it: reads texts from a map in any valid encoding, and
 * writes short texts. It knows nothing of CoAP and certificates. */
#include "cd_internal.h"

#include <string.h>

enum { UNSIGNED, NEGATIVE, BYTES, TEXT, ARRAY, MAP, TAG, SIMPLE };
enum { INDEFINITE = 31, DEPTH = 8, SELF_DESCRIBED = 55799, KEY_ROOM = 16 };

struct cursor {
  const uint8_t *at, *end;
};

struct head {
  uint8_t major, info;
  uint32_t value; /* not of an indefinite length; UINT32_MAX stands for all that is larger */
};

/* Section 3: the initial byte and its argument. */
static bool read_head(struct cursor *in, struct head *head) {
  if (in->at == in->end) return false;
  head->major = (uint8_t)(*in->at >> 5);
  head->info = *in->at++ & 31;
  head->value = head->info;
  if (head->info < 24) return true;
  if (head->info == INDEFINITE) return head->major >= BYTES && head->major != TAG;
  if (head->info > 27) return false;
  size_t size = (size_t)1 << (head->info - 24);
  if ((size_t)(in->end - in->at) < size) return false;
  for (head->value = 0; size > 0; size--, in->at++)
    head->value = head->value < 1u << 24 ? head->value << 8 | *in->at : UINT32_MAX;
  /* Section 3.3: simple values below 32 have no second byte. */
  return head->major != SIMPLE || head->info != 24 || head->value >= 32;
}

static bool at_break(struct cursor *in) {
  if (in->at == in->end || *in->at != 0xff) return false;
  in->at++;
  return true;
}

/* Gets the bytes of a string, as many as there is room for. */
struct sink {
  char *text;
  size_t room, length; /* of the whole string */
};

/* Reads the item after its head. Strings in it go to the sink, one after the other. */
static bool read_item(struct cursor *in, const struct head *head, int depth, struct sink *sink) {
  struct head inner;
  bool open = head->info == INDEFINITE, is_string = head->major == BYTES || head->major == TEXT;
  uint32_t items = head->major == TAG ? 1 : head->value;
  if (head->major <= NEGATIVE) return true;
  if (head->major == SIMPLE) return !open; /* a break that ends nothing is an error */
  if (is_string && !open) {
    if (items > (size_t)(in->end - in->at)) return false;
    for (; items > 0; items--, in->at++)
      if (sink->length++ < sink->room) sink->text[sink->length - 1] = (char)*in->at;
    return true;
  }
  if (head->major == MAP) {
    if (items > INT32_MAX) return false;
    items *= 2;
  }
  if (depth == 0) return false;
  /* Each item takes a byte at least, so a count that is too large ends with the input. */
  for (uint32_t i = 0; open || i < items; i++) {
    if (open && (head->major != MAP || i % 2 == 0) && at_break(in)) return true;
    if (!read_head(in, &inner)) return false;
    /* Section 3.2.3: the chunks of a string have its type, and definite lengths. */
    if (is_string && (inner.major != head->major || inner.info == INDEFINITE)) return false;
    if (!read_item(in, &inner, depth - 1, sink)) return false;
  }
  return true;
}

static bool read_text(struct cursor *in, const struct head *head, const struct cd_text *text, char *out) {
  struct sink sink = {out, text->room - (size_t)1, 0};
  bool for_people = !text->key;
  if (out[0] || head->major != TEXT || !read_item(in, head, 1, &sink)) return false;
  if (sink.length > sink.room) {
    if (!for_people) return false;
    sink.length = sink.room;
  }
  for (; sink.length > 0; sink.length--, out++) {
    if (*out >= ' ' && *out <= '~') continue;
    if (!for_people) return false;
    *out = '?';
  }
  return true;
}

int cd_cbor_read(const uint8_t *bytes, size_t length, const struct cd_text *texts, int count, void *out) {
  struct cursor in = {bytes, bytes + length};
  struct head map, key, value;
  if (!read_head(&in, &map)) return -1;
  if (map.major == TAG && map.value == SELF_DESCRIBED && !read_head(&in, &map)) return -1;
  if (map.major != MAP) return -1;
  bool open = map.info == INDEFINITE;
  for (uint32_t entries = map.value; open || entries > 0; entries--) {
    char name[KEY_ROOM];
    struct sink named = {name, sizeof name, 0}, skipped = {NULL, 0, 0};
    const struct cd_text *found = NULL;
    if (open && at_break(&in)) break;
    if (!read_head(&in, &key) || !read_item(&in, &key, DEPTH, &named)) return -1;
    for (const struct cd_text *text = texts; text < texts + count; text++) {
      /* No key that is looked for is as long as the room. */
      if (text->key ? key.major == TEXT && strlen(text->key) == named.length && memcmp(text->key, name, named.length) == 0
                    : key.major == NEGATIVE && key.value == 0)
        found = text;
    }
    if (!read_head(&in, &value)) return -1;
    if (found ? !read_text(&in, &value, found, (char *)out + found->offset) : !read_item(&in, &value, DEPTH, &skipped))
      return -1;
  }
  return in.at == in.end ? 0 : -1;
}

uint8_t *cd_cbor_write_text(uint8_t *at, const char *text, size_t length) {
  if (length < 24) {
    *at++ = (uint8_t)(TEXT << 5 | length);
  } else {
    *at++ = TEXT << 5 | 24;
    *at++ = (uint8_t)length;
  }
  memcpy(at, text, length);
  return at + length;
}
