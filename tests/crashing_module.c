/* A PKCS#11 module that crashes as soon as it is asked for its functions. */
#include <stdlib.h>

unsigned long C_GetFunctionList(void **list) {
    (void)list;
    abort();
}
