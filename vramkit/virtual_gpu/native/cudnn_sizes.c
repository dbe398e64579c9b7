/* cuDNN's older interface: handles, descriptors, batch norm, dropout, CTC and RNNs.
 * The real library can make no handle without a device, so the sizes asked for are answered here: the weights of RNNs
 * by their layout; work and reserve spaces by rules that give what cuDNN 9.19 answered on an H200, in every row that was
 * asked for (benchmarks/real_gpu/recordings/libraries). Fakes have the same rules: engines/fake/kernels/cudnn_sizes.py.
 * What computes is a generated stub. */
#include "vgpu.h"

#include <cudnn.h>

#define OK CUDNN_STATUS_SUCCESS

cudnnStatus_t cudnnCreate(cudnnHandle_t *handle) { return (cudnnStatus_t)make((void **)handle); }
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) { return (cudnnStatus_t)discard(handle); }
cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t *stream) {
  return *stream = *(cudaStream_t *)handle, OK;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) { return *(cudaStream_t *)handle = stream, OK; }

#define DESCRIPTOR(Kind, kind)                                                                                         \
  cudnnStatus_t cudnnCreate##Kind##Descriptor(kind *descriptor) { return (cudnnStatus_t)make((void **)descriptor); }   \
  cudnnStatus_t cudnnDestroy##Kind##Descriptor(kind descriptor) { return (cudnnStatus_t)discard(descriptor); }
DESCRIPTOR(Tensor, cudnnTensorDescriptor_t)
DESCRIPTOR(Filter, cudnnFilterDescriptor_t)
DESCRIPTOR(Convolution, cudnnConvolutionDescriptor_t)
DESCRIPTOR(Activation, cudnnActivationDescriptor_t)
DESCRIPTOR(Pooling, cudnnPoolingDescriptor_t)
DESCRIPTOR(Dropout, cudnnDropoutDescriptor_t)
DESCRIPTOR(CTCLoss, cudnnCTCLossDescriptor_t)
DESCRIPTOR(SpatialTransformer, cudnnSpatialTransformerDescriptor_t)
DESCRIPTOR(RNN, cudnnRNNDescriptor_t)
DESCRIPTOR(RNNData, cudnnRNNDataDescriptor_t)

/* ---- tensors: torch reads back the ones that describe an RNN's weights */

struct tensor {
  int type, rank, dims[8];
  bool channels_last;
};

cudnnStatus_t cudnnSetTensorNdDescriptor(cudnnTensorDescriptor_t descriptor, cudnnDataType_t type, int rank,
                                         const int dims[], const int strides[]) {
  struct tensor *tensor = (struct tensor *)descriptor;
  if (rank > 8) return CUDNN_STATUS_NOT_SUPPORTED;
  tensor->type = (int)type, tensor->rank = rank, tensor->channels_last = strides && rank > 1 && strides[1] == 1;
  for (int i = 0; i < rank; i++) tensor->dims[i] = dims[i];
  return OK;
}
cudnnStatus_t cudnnGetTensorNdDescriptor(const cudnnTensorDescriptor_t descriptor, int wanted, cudnnDataType_t *type,
                                         int *rank, int dims[], int strides[]) {
  const struct tensor *tensor = (const struct tensor *)descriptor;
  *type = (cudnnDataType_t)tensor->type, *rank = tensor->rank;
  for (int i = tensor->rank - 1, stride = 1; i >= 0; stride *= tensor->dims[i--])
    if (i < wanted) dims[i] = tensor->dims[i], strides[i] = stride;
  return OK;
}

/* ---- batch norm, CTC, dropout
 * Batch norm wants nothing but of its persistent kernels, whose blocks leave sums of their rows for 64 channels each. */

static size_t ceil_div(size_t size, size_t by) { return (size + by - 1) / by; }

static size_t persistent_norm(cudnnBatchNormMode_t mode, const cudnnTensorDescriptor_t x, bool backward) {
  const struct tensor *tensor = (const struct tensor *)x;
  if (mode != CUDNN_BATCHNORM_SPATIAL_PERSISTENT || !tensor->channels_last) return 0;
  size_t pixels = 1, columns = ceil_div((size_t)tensor->dims[1], 64);
  for (int i = 0; i < tensor->rank; i++) pixels *= i == 1 ? 1 : (size_t)tensor->dims[i];
  size_t rows = backward ? 96 : tensor->type == CUDNN_DATA_FLOAT ? 64 : 160;
  return (backward ? 1056 : 1072) + columns * (4 + (backward ? 512 : 516) * ceil_div(pixels, rows));
}

cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    cudnnHandle_t handle UNUSED, cudnnBatchNormMode_t mode, cudnnBatchNormOps_t ops UNUSED,
    const cudnnTensorDescriptor_t x, const cudnnTensorDescriptor_t z UNUSED, const cudnnTensorDescriptor_t y UNUSED,
    const cudnnTensorDescriptor_t scale UNUSED, const cudnnActivationDescriptor_t activation UNUSED, size_t *size) {
  return *size = persistent_norm(mode, x, false), OK;
}
cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    cudnnHandle_t handle UNUSED, cudnnBatchNormMode_t mode, cudnnBatchNormOps_t ops UNUSED,
    const cudnnTensorDescriptor_t x, const cudnnTensorDescriptor_t y UNUSED, const cudnnTensorDescriptor_t dy UNUSED,
    const cudnnTensorDescriptor_t dz UNUSED, const cudnnTensorDescriptor_t dx UNUSED,
    const cudnnTensorDescriptor_t scale UNUSED, const cudnnActivationDescriptor_t activation UNUSED, size_t *size) {
  return *size = persistent_norm(mode, x, true), OK;
}
cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
    cudnnHandle_t handle UNUSED, cudnnBatchNormMode_t mode UNUSED, cudnnBatchNormOps_t ops UNUSED,
    const cudnnActivationDescriptor_t activation UNUSED, const cudnnTensorDescriptor_t x UNUSED, size_t *size) {
  return *size = 0, OK;
}
cudnnStatus_t cudnnGetCTCLossWorkspaceSize_v8(cudnnHandle_t handle UNUSED, cudnnCTCLossAlgo_t algorithm UNUSED,
                                              cudnnCTCLossDescriptor_t loss UNUSED,
                                              const cudnnTensorDescriptor_t probabilities UNUSED,
                                              const cudnnTensorDescriptor_t gradients UNUSED, size_t *size) {
  return *size = 0, OK;
}
/* Assumed: a generator of 24 bytes for each thread that the device can hold. */
cudnnStatus_t cudnnDropoutGetStatesSize(cudnnHandle_t handle UNUSED, size_t *size) {
  configure();
  *size = (size_t)settings.multiprocessors * (size_t)settings.threads_per_multiprocessor * 24;
  return OK;
}

/* ---- recurrent networks
 * A pseudo-layer is one direction of one layer. The weight space holds the matrices of all pseudo-layers, one after the
 * other, then all their biases; assumed is that nothing is padded. */

struct rnn {
  int gates, type, bias, directions, input, hidden, projection, layers;
  bool persistent, dropout;
};
struct rnn_data {
  int steps, batch;
  size_t rows;
  bool packed;
};

static size_t type_size(int type) {
  return type == CUDNN_DATA_DOUBLE ? 8 : type == CUDNN_DATA_HALF || type == CUDNN_DATA_BFLOAT16 ? 2 : 4;
}

static cudnnStatus_t drop(cudnnDropoutDescriptor_t descriptor, float rate) {
  return *(float *)descriptor = rate, OK;
}
cudnnStatus_t cudnnSetDropoutDescriptor(cudnnDropoutDescriptor_t descriptor, cudnnHandle_t handle UNUSED, float rate,
                                        void *states UNUSED, size_t size UNUSED, unsigned long long seed UNUSED) {
  return drop(descriptor, rate);
}
cudnnStatus_t cudnnRestoreDropoutDescriptor(cudnnDropoutDescriptor_t descriptor, cudnnHandle_t handle UNUSED,
                                            float rate, void *states UNUSED, size_t size UNUSED,
                                            unsigned long long seed UNUSED) {
  return drop(descriptor, rate);
}

cudnnStatus_t cudnnSetRNNDescriptor_v8(cudnnRNNDescriptor_t descriptor, cudnnRNNAlgo_t algorithm,
                                       cudnnRNNMode_t mode, cudnnRNNBiasMode_t bias, cudnnDirectionMode_t direction,
                                       cudnnRNNInputMode_t how UNUSED, cudnnDataType_t type,
                                       cudnnDataType_t precision UNUSED, cudnnMathType_t math UNUSED, int32_t input,
                                       int32_t hidden, int32_t projection, int32_t layers,
                                       cudnnDropoutDescriptor_t dropout, uint32_t flags UNUSED) {
  *(struct rnn *)descriptor = (struct rnn){
      .gates = mode == CUDNN_LSTM  ? 4
               : mode == CUDNN_GRU ? 3
                                   : 1,
      .type = (int)type,
      .bias = bias == CUDNN_RNN_NO_BIAS ? 0 : 2,
      .directions = direction == CUDNN_BIDIRECTIONAL ? 2 : 1,
      .input = input,
      .hidden = hidden,
      .projection = projection,
      .layers = layers,
      .persistent = algorithm != CUDNN_RNN_ALGO_STANDARD && type != CUDNN_DATA_BFLOAT16, /* has no such kernels */
      .dropout = layers > 1 && dropout && *(float *)dropout > 0,
  };
  return OK;
}
cudnnStatus_t cudnnSetRNNDataDescriptor(cudnnRNNDataDescriptor_t descriptor, cudnnDataType_t type UNUSED,
                                        cudnnRNNDataLayout_t layout, int steps, int batch, int width UNUSED,
                                        const int lengths[], void *filling UNUSED) {
  struct rnn_data *data = (struct rnn_data *)descriptor;
  *data = (struct rnn_data){.steps = steps, .batch = batch};
  data->packed = layout == CUDNN_RNN_DATA_LAYOUT_SEQ_MAJOR_PACKED;
  for (int i = 0; i < batch; i++) data->rows += (size_t)(data->packed ? lengths[i] : steps);
  return OK;
}

static int output_width(const struct rnn *rnn) { return rnn->projection ? rnn->projection : rnn->hidden; }
static int input_width(const struct rnn *rnn, int layer) {
  return layer < rnn->directions ? rnn->input : output_width(rnn) * rnn->directions;
}

/* Elements of the matrices of the first pseudo-layers. */
static size_t matrices(const struct rnn *rnn, int layers) {
  size_t total = 0, hidden = (size_t)rnn->hidden, out = (size_t)output_width(rnn);
  for (int layer = 0; layer < layers; layer++) {
    total += (size_t)rnn->gates * hidden * ((size_t)input_width(rnn, layer) + out);
    if (rnn->projection && rnn->projection != rnn->hidden) total += out * hidden;
  }
  return total;
}

cudnnStatus_t cudnnGetRNNWeightSpaceSize(cudnnHandle_t handle UNUSED, cudnnRNNDescriptor_t descriptor, size_t *size) {
  const struct rnn *rnn = (const struct rnn *)descriptor;
  int layers = rnn->layers * rnn->directions;
  *size = type_size(rnn->type) * (matrices(rnn, layers) + (size_t)layers * rnn->bias * rnn->gates * rnn->hidden);
  return OK;
}

/* Where one matrix of a pseudo-layer is, and its bias. Numbers below `gates` are of the input, then come the recurrent
 * ones, then the projection. */
cudnnStatus_t cudnnGetRNNWeightParams(cudnnHandle_t handle UNUSED, cudnnRNNDescriptor_t descriptor, int32_t layer,
                                      size_t space_size UNUSED, const void *space, int32_t id,
                                      cudnnTensorDescriptor_t matrix, void **matrix_at, cudnnTensorDescriptor_t bias,
                                      void **bias_at) {
  const struct rnn *rnn = (const struct rnn *)descriptor;
  int in = input_width(rnn, layer), out = output_width(rnn), gates = rnn->gates;
  bool recurrent = id >= gates, projection = id >= 2 * gates;
  size_t hidden = (size_t)rnn->hidden, unit = type_size(rnn->type);
  size_t before = recurrent ? (size_t)gates * in + (size_t)(id - gates) * out : (size_t)id * in;
  int dims[3] = {1, projection ? out : rnn->hidden, projection ? rnn->hidden : recurrent ? out : in};
  if (matrix) cudnnSetTensorNdDescriptor(matrix, (cudnnDataType_t)rnn->type, 3, dims, NULL);
  if (matrix_at) *matrix_at = (char *)space + unit * (matrices(rnn, layer) + hidden * before);
  if (bias_at) *bias_at = NULL;
  if (rnn->bias && !projection) {
    size_t offset = matrices(rnn, rnn->layers * rnn->directions) + hidden * ((size_t)layer * rnn->bias * gates + id);
    if (bias) cudnnSetTensorNdDescriptor(bias, (cudnnDataType_t)rnn->type, 3, (int[]){1, rnn->hidden, 1}, NULL);
    if (bias_at) *bias_at = (char *)space + unit * offset;
  }
  return OK;
}

/* Spaces are made of buffers, each rounded up to 32 bytes. A buffer of rows is one for every step of every sequence, a
 * state one for every sequence, direction and layer. Packed sequences need no copies of the caller's tensors; persistent
 * kernels keep more copies of the gates. */
struct spaces {
  size_t unit, rows, states, in, out, hidden, directions, gates, layers;
  bool lstm, packed, projected, persistent, dropout;
};

static size_t up(size_t size) { return ROUND_UP(size, 32); }
static size_t rows_of(const struct spaces *of, size_t width) { return up(of->rows * width * of->unit); }
static size_t states_of(const struct spaces *of, size_t width) { return up(of->states * width * of->unit); }

static size_t forward_space(const struct spaces *of) {
  size_t hidden = of->hidden, pairs = of->directions - 1;
  size_t size = rows_of(of, of->gates * of->directions * hidden) + pairs * rows_of(of, 4 * hidden);
  if (of->projected) size += rows_of(of, of->directions * hidden);
  if (of->dropout && !pairs) size += rows_of(of, hidden);
  if (of->persistent)
    size += rows_of(of, 4 * of->gates * hidden) + states_of(of, ((of->lstm ? 4 : 2) + pairs) * hidden);
  else if (of->lstm)
    size += states_of(of, 2 * hidden) + states_of(of, 4 * hidden) + pairs * states_of(of, 2 * hidden);
  else
    size += states_of(of, of->gates * hidden) + pairs * states_of(of, 2 * hidden);
  if (of->packed) return size;
  size += rows_of(of, of->in) + rows_of(of, of->directions * of->out) + 2 * states_of(of, of->out);
  return of->lstm ? size + 2 * states_of(of, hidden) : size;
}

/* Layers of one direction work on groups of steps, some of which are on their way from layer to layer. How many steps
 * a group has was seen of batches of 1, 16, 20, 32 and 64. */
static size_t waiting_rows(const struct spaces *of, size_t batch) {
  size_t steps = 4;
  while (steps < 32 && 2 * steps * batch <= 128) steps *= 2;
  size_t waiting = (steps * of->layers + (steps < 8 ? 8 : steps)) * batch;
  return waiting < of->rows ? waiting : of->rows;
}

static size_t backward_space(const struct spaces *of, size_t batch) {
  size_t hidden = of->hidden, widest = of->in > hidden ? of->in : hidden, pairs = of->directions - 1;
  size_t size = pairs ? rows_of(of, 4 * widest) + rows_of(of, (of->layers == 1 ? 2 : 4) * hidden)
                      : rows_of(of, widest);
  if (of->persistent) {
    size += rows_of(of, (of->gates > 1 ? 14 : 9) * hidden) + states_of(of, (2 + pairs) * hidden);
    if (!pairs) size += rows_of(of, (of->layers == 1 ? 1 : 2) * hidden);
  } else {
    size += states_of(of, hidden) + pairs * states_of(of, 2 * hidden);
    if (!pairs) size += of->layers == 1 ? rows_of(of, hidden) : up(waiting_rows(of, batch) * hidden * of->unit);
    if (of->lstm) size += states_of(of, 2 * hidden);
  }
  if (of->packed) return size;
  size += 2 * rows_of(of, of->in) + 2 * rows_of(of, of->directions * of->out) + 4 * states_of(of, of->out);
  return of->lstm ? size + 4 * states_of(of, hidden) : size;
}

/* What lives from a layer's forward to its backward: of each layer and direction what is as large as its output, and
 * what dropout has drawn, a bit for each number, of padded steps as well. */
static size_t reserve_space(const struct spaces *of, const struct rnn_data *x) {
  size_t between = of->layers - 1, hidden = of->hidden * of->directions;
  size_t width = (of->lstm ? 5 : of->gates > 1 ? 6 : 1) * hidden;
  if (of->projected) width += hidden + of->out * of->directions;
  size_t drawn = (size_t)x->steps * (size_t)x->batch * hidden;
  size_t masks = of->dropout ? between * of->directions * up(ceil_div(drawn, 8)) : 0;
  return 256 + rows_of(of, of->layers * width) + rows_of(of, between * of->out * of->directions) + masks;
}

cudnnStatus_t cudnnGetRNNTempSpaceSizes(cudnnHandle_t handle UNUSED, cudnnRNNDescriptor_t descriptor,
                                        cudnnForwardMode_t mode, cudnnRNNDataDescriptor_t data, size_t *work,
                                        size_t *reserve) {
  const struct rnn *rnn = (const struct rnn *)descriptor;
  const struct rnn_data *x = (const struct rnn_data *)data;
  int layers = rnn->layers * rnn->directions;
  struct spaces of = {
      .unit = type_size(rnn->type),
      .rows = x->rows,
      .states = (size_t)layers * (size_t)x->batch,
      .in = (size_t)rnn->input,
      .out = (size_t)output_width(rnn),
      .hidden = (size_t)rnn->hidden,
      .directions = (size_t)rnn->directions,
      .gates = (size_t)rnn->gates,
      .layers = (size_t)rnn->layers,
      .lstm = rnn->gates == 4,
      .packed = x->packed,
      .projected = output_width(rnn) != rnn->hidden,
      .persistent = rnn->persistent,
      .dropout = rnn->dropout,
  };
  bool training = mode == CUDNN_FWD_MODE_TRAINING;
  size_t space = forward_space(&of), backward = training ? backward_space(&of, (size_t)x->batch) : 0;
  if (backward > space) space = backward;
  space += ((size_t)layers << 23) + 256 + up(matrices(rnn, layers) * of.unit);
  *work = x->packed ? space : space + up(8 * (size_t)x->batch);
  if (reserve) *reserve = training ? reserve_space(&of, x) : 0;
  return OK;
}
