/* Plan and products for float32 on CPUs, as handlers of XLA's foreign function interface.
   What an expert lacks is passed as an empty array. */

#include "forward.h"
#include "grouped_matmul.h"
#include "hidden_grad.h"
#include "plan.h"
#include "weight_grad.h"
