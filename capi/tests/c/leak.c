// Destroys its context and loses memory of its own: what a leak checker must find, and the only
// thing that it may find.
#include "aios.h"
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    aios_context context = 0;
    if (argc != 2 || aios_init(argv[1], NULL, &context) != AIOS_OK)
        return 1;
    char *volatile lost = malloc(1000);
    memset(lost, 1, 1000);
    lost = NULL;
    return aios_destroy(context) == AIOS_OK && lost == NULL ? 0 : 2;
}
