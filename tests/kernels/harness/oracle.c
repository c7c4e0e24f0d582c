#include "oracle.h"

#include <math.h>
#include <stddef.h>

static int64_t at(const int32_t *index, int64_t row) { return index ? index[row] : row; }

static double weight_at(const float *w, int64_t i, int64_t j, int64_t n_in, int64_t n_out,
                        int transposed) {
  return transposed ? w[j * n_in + i] : w[i * n_out + j];
}

/* y += x w, for one row. */
static void add_row(double *y, double x, const float *w, int64_t i, int64_t n_in, int64_t n_out,
                    int transposed) {
  for (int64_t j = 0; j < n_out; j++) y[j] += x * weight_at(w, i, j, n_in, n_out, transposed);
}

static void start_row(double *y, const float *bias, int64_t e, int64_t n_out) {
  for (int64_t j = 0; j < n_out; j++) y[j] = bias ? bias[e * n_out + j] : 0;
}

void oracle_product(double *y, const float *x, const int32_t *index, const int32_t *offset,
                    int64_t experts, const float *w, const float *bias, int64_t n_in, int64_t n_out,
                    int transposed) {
  for (int64_t e = 0; e < experts; e++)
    for (int64_t s = offset[e]; s < offset[e + 1]; s++) {
      start_row(y + s * n_out, bias, e, n_out);
      for (int64_t i = 0; i < n_in; i++)
        add_row(y + s * n_out, x[at(index, s) * n_in + i], w + e * n_in * n_out, i, n_in, n_out,
                transposed);
    }
}

void oracle_product_of(double *y, const double *x, const int32_t *offset, int64_t experts,
                       const float *w, const float *bias, int64_t n_in, int64_t n_out,
                       int transposed) {
  for (int64_t e = 0; e < experts; e++)
    for (int64_t s = offset[e]; s < offset[e + 1]; s++) {
      start_row(y + s * n_out, bias, e, n_out);
      for (int64_t i = 0; i < n_in; i++)
        add_row(y + s * n_out, x[s * n_in + i], w + e * n_in * n_out, i, n_in, n_out, transposed);
    }
}

double oracle_activation(int kind, double h, double *slope) {
  const double root = sqrt(2 / acos(-1.0)); /* sqrt(2 / pi) */
  switch (kind) {
  case 0: { /* silu */
    double s = 1 / (1 + exp(-h));
    *slope = s * (1 + h * (1 - s));
    return h * s;
  }
  case 1: { /* gelu */
    double cdf = erfc(-h / sqrt(2)) / 2;
    *slope = cdf + h * root / 2 * exp(-h * h / 2);
    return h * cdf;
  }
  case 2: { /* gelu by tanh */
    double t = tanh(root * (h + 0.044715 * h * h * h));
    *slope = (1 + t) / 2 + h * (1 - t * t) / 2 * root * (1 + 3 * 0.044715 * h * h);
    return h * (1 + t) / 2;
  }
  case 3: /* relu */ *slope = h > 0; return h > 0 ? h : 0;
  default: /* relu squared */ *slope = h > 0 ? 2 * h : 0; return h > 0 ? h * h : 0;
  }
}

void oracle_weight_grad(double *dw, const float *x, const int32_t *x_index, const float *dy,
                        const int32_t *dy_index, const int32_t *offset, int64_t experts,
                        int64_t n_in, int64_t n_out) {
  for (int64_t i = 0; i < experts * n_in * n_out; i++) dw[i] = 0;
  for (int64_t e = 0; e < experts; e++)
    for (int64_t s = offset[e]; s < offset[e + 1]; s++)
      for (int64_t i = 0; i < n_in; i++) {
        double left = x[at(x_index, s) * n_in + i];
        const float *right = dy + at(dy_index, s) * n_out;
        for (int64_t j = 0; j < n_out; j++) dw[(e * n_in + i) * n_out + j] += left * right[j];
      }
}
