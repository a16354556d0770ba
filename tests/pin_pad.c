/* A PKCS#11 module with a PIN pad: SoftHSM2's, whose PIN is typed at the FIFO that PIN_PAD names.

   A line there is the PIN, an empty one the pad's red button. PIN_PAD with .asked after it gets a line
   whenever the pad asks, and another when a program gives a PIN itself, which is refused.
   The numbers are PKCS#11's: section 5.2's order of functions, appendix B's constants. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long ulong;
struct functions {
  unsigned char version[2];
  void *function[68];
};
struct token_info {
  unsigned char names[96];
  ulong flags, numbers[10];
  unsigned char rest[64];
};

enum { GET_FUNCTION_LIST = 3, GET_TOKEN_INFO = 6, LOGIN = 18 };
enum { CANCELED = 0x50, PIN_INCORRECT = 0xA0, PROTECTED_AUTHENTICATION_PATH = 0x100 };

static struct functions *softhsm, ours;

static ulong get_token_info(ulong slot, struct token_info *info) {
  ulong (*real)(ulong, struct token_info *) = softhsm->function[GET_TOKEN_INFO];
  ulong result = real(slot, info);
  if (result == 0) info->flags |= PROTECTED_AUTHENTICATION_PATH;
  return result;
}

static void say(const char *what) {
  char path[4096];
  snprintf(path, sizeof path, "%s.asked", getenv("PIN_PAD"));
  FILE *file = fopen(path, "a");
  fprintf(file, "%s\n", what);
  fclose(file);
}

static ulong login(ulong session, ulong user, char *pin, ulong size) {
  ulong (*real)(ulong, ulong, char *, ulong) = softhsm->function[LOGIN];
  char line[256] = "";
  (void)size;
  if (pin != NULL) {
    say("a program gave a PIN");
    return PIN_INCORRECT;
  }
  say("the pad asks");
  FILE *pad = fopen(getenv("PIN_PAD"), "r");
  if (pad == NULL || fgets(line, sizeof line, pad) == NULL) line[0] = 0;
  if (pad != NULL) fclose(pad);
  line[strcspn(line, "\n")] = 0;
  return line[0] == 0 ? CANCELED : real(session, user, line, strlen(line));
}

static ulong get_function_list(struct functions **list) {
  *list = &ours;
  return 0;
}

ulong C_GetFunctionList(struct functions **list) {
  void *library = dlopen("/usr/lib/softhsm/libsofthsm2.so", RTLD_NOW | RTLD_LOCAL);
  ulong (*real)(struct functions **) = dlsym(library, "C_GetFunctionList");
  ulong result = real(&softhsm);
  ours = *softhsm;
  ours.function[GET_FUNCTION_LIST] = get_function_list;
  ours.function[GET_TOKEN_INFO] = get_token_info;
  ours.function[LOGIN] = login;
  *list = &ours;
  return result;
}
