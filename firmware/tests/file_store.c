/* The file store of the POSIX port: what it replaces, what it refuses, and a process that is killed
 * while it saves. `file_store FOLDER [SEED]` works in an empty folder. */
#include "cd_posix.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition) \
  ((condition) ? (void)0 : (fprintf(stderr, "failed: %s:%d: %s\n", __FILE__, __LINE__, #condition), exit(1)))

enum { KILLS = 100, LONG = 290, ROOM = 297 };

static bool has(const char *text) {
  char record[ROOM];
  int length = cd_file_load("record", record, sizeof record);
  return length == (int)strlen(text) && memcmp(record, text, strlen(text)) == 0;
}

static int save(const char *text) {
  return cd_file_save("record", text, strlen(text));
}

static void a_record_is_replaced_and_removed(void) {
  struct stat status;
  CHECK(has(""));
  CHECK(save("one") == 0 && has("one"));
  CHECK(save("another one") == 0 && has("another one"));
  CHECK(stat("record", &status) == 0 && (status.st_mode & 0777) == 0600);
  CHECK(save("") == 0 && has("") && stat("record", &status) < 0);
  CHECK(save("") == 0);
}

static void a_file_that_is_left_over_or_planted_is_not_written_to(void) {
  struct stat status;
  CHECK(cd_file_save("other", "other", 5) == 0);
  CHECK(symlink("other", "record.new") == 0);
  CHECK(save("one") == 0 && has("one"));
  CHECK(lstat("record", &status) == 0 && S_ISREG(status.st_mode));
  char other[8];
  CHECK(cd_file_load("other", other, sizeof other) == 5 && memcmp(other, "other", 5) == 0);
}

static void what_cannot_work_is_refused(void) {
  char record[ROOM], path[2000];
  CHECK(cd_file_save("missing/record", "x", 1) < 0);
  CHECK(cd_file_load("missing/record", record, sizeof record) == 0);
  CHECK(save("0123456789") == 0 && cd_file_load("record", record, 9) < 0 && cd_file_load("record", record, 10) == 10);
  CHECK(cd_file_load(".", record, sizeof record) < 0);
  memset(path, 'x', sizeof path - 1);
  path[sizeof path - 1] = 0;
  CHECK(cd_file_save(path, "x", 1) < 0);
}

/* The file is a whole record at every moment. */
static void a_killed_process_leaves_a_whole_record(unsigned seed) {
  srand(seed);
  CHECK(save("first") == 0);
  for (int i = 0; i < KILLS; i++) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      char record[LONG];
      for (char fill = 'a';; fill = fill == 'z' ? 'a' : (char)(fill + 1)) {
        memset(record, fill, sizeof record);
        if (cd_file_save("record", record, sizeof record) < 0) _exit(1);
      }
    }
    struct timespec delay = {0, rand() % 3000000};
    nanosleep(&delay, NULL);
    CHECK(kill(child, SIGKILL) == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    char record[ROOM];
    int length = cd_file_load("record", record, sizeof record);
    if (length == 5 && memcmp(record, "first", 5) == 0) continue;
    CHECK(length == LONG);
    for (int j = 0; j < LONG; j++) CHECK(record[j] == record[0]);
  }
}

int main(int argc, char **argv) {
  unsigned seed = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : (unsigned)time(NULL);
  if (argc < 2 || chdir(argv[1]) < 0) return fprintf(stderr, "usage: %s FOLDER [SEED]\n", argv[0]), 2;
  printf("file store, seed %u\n", seed);
  fflush(stdout);
  a_record_is_replaced_and_removed();
  a_file_that_is_left_over_or_planted_is_not_written_to();
  what_cannot_work_is_refused();
  a_killed_process_leaves_a_whole_record(seed);
  return 0;
}
