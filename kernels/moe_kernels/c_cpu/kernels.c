/* The kernels of `primitives` whose work is in products, for float32 on CPUs, as handlers of XLA's
   foreign function interface. What an expert lacks is passed as an empty array. */

#include "grouped_matmul.h"
#include "hidden_grad.h"
#include "up.h"
#include "weight_grad.h"
