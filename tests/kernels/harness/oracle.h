/* What the kernels should compute, by plain loops in double precision. */
#ifndef ORACLE_H
#define ORACLE_H

#include <stdint.h>

/* Some rows of a product: y[s] = x[index[s]] W[e] + bias[e] for the rows s of each expert e, as
   `offset` has them. W[e] is [n_in, n_out], or [n_out, n_in] if transposed. `index` and `bias` may
   be NULL. */
void oracle_product(double *y, const float *x, const int32_t *index, const int32_t *offset,
                    int64_t experts, const float *w, const float *bias, int64_t n_in, int64_t n_out,
                    int transposed);

/* The same with rows of doubles, which have no index. */
void oracle_product_of(double *y, const double *x, const int32_t *offset, int64_t experts,
                       const float *w, const float *bias, int64_t n_in, int64_t n_out,
                       int transposed);

/* The activation with this number, and its derivative. */
double oracle_activation(int kind, double h, double *slope);

/* dw[e, i, j] = sum over the rows s of e of x[x_index[s], i] dy[dy_index[s], j]. */
void oracle_weight_grad(double *dw, const float *x, const int32_t *x_index, const float *dy,
                        const int32_t *dy_index, const int32_t *offset, int64_t experts,
                        int64_t n_in, int64_t n_out);

#endif
