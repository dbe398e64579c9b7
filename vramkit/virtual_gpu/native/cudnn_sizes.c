/* cuDNN's older interface: handles, descriptors, batch norm, dropout, CTC and RNNs.
 * The real library can make no handle without a device, so the sizes asked for are answered here: the weights of RNNs
 * by their layout, work and reserve spaces by estimates (see README.md). What computes is a generated stub. */
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
};

cudnnStatus_t cudnnSetTensorNdDescriptor(cudnnTensorDescriptor_t descriptor, cudnnDataType_t type, int rank,
                                         const int dims[], const int strides[] UNUSED) {
  struct tensor *tensor = (struct tensor *)descriptor;
  if (rank > 8) return CUDNN_STATUS_NOT_SUPPORTED;
  tensor->type = (int)type, tensor->rank = rank;
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
 * Batch norm: all sizes are 0 for NCHW; what the persistent NHWC kernels take is not known here. */

cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    cudnnHandle_t handle UNUSED, cudnnBatchNormMode_t mode UNUSED, cudnnBatchNormOps_t ops UNUSED,
    const cudnnTensorDescriptor_t x UNUSED, const cudnnTensorDescriptor_t z UNUSED,
    const cudnnTensorDescriptor_t y UNUSED, const cudnnTensorDescriptor_t scale UNUSED,
    const cudnnActivationDescriptor_t activation UNUSED, size_t *size) {
  return *size = 0, OK;
}
cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    cudnnHandle_t handle UNUSED, cudnnBatchNormMode_t mode UNUSED, cudnnBatchNormOps_t ops UNUSED,
    const cudnnTensorDescriptor_t x UNUSED, const cudnnTensorDescriptor_t y UNUSED,
    const cudnnTensorDescriptor_t dy UNUSED, const cudnnTensorDescriptor_t dz UNUSED,
    const cudnnTensorDescriptor_t dx UNUSED, const cudnnTensorDescriptor_t scale UNUSED,
    const cudnnActivationDescriptor_t activation UNUSED, size_t *size) {
  return *size = 0, OK;
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
};
struct rnn_data {
  int steps, batch;
};

static size_t type_size(int type) {
  return type == CUDNN_DATA_DOUBLE ? 8 : type == CUDNN_DATA_HALF || type == CUDNN_DATA_BFLOAT16 ? 2 : 4;
}

cudnnStatus_t cudnnSetRNNDescriptor_v8(cudnnRNNDescriptor_t descriptor, cudnnRNNAlgo_t algorithm UNUSED,
                                       cudnnRNNMode_t mode, cudnnRNNBiasMode_t bias, cudnnDirectionMode_t direction,
                                       cudnnRNNInputMode_t how UNUSED, cudnnDataType_t type,
                                       cudnnDataType_t precision UNUSED, cudnnMathType_t math UNUSED, int32_t input,
                                       int32_t hidden, int32_t projection, int32_t layers,
                                       cudnnDropoutDescriptor_t dropout UNUSED, uint32_t flags UNUSED) {
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
  };
  return OK;
}
cudnnStatus_t cudnnSetRNNDataDescriptor(cudnnRNNDataDescriptor_t descriptor, cudnnDataType_t type UNUSED,
                                        cudnnRNNDataLayout_t layout UNUSED, int steps, int batch, int width UNUSED,
                                        const int lengths[] UNUSED, void *filling UNUSED) {
  *(struct rnn_data *)descriptor = (struct rnn_data){steps, batch};
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

/* Assumed: the work space holds the gates of one layer; the reserve, for every layer, gates, cell and output. */
cudnnStatus_t cudnnGetRNNTempSpaceSizes(cudnnHandle_t handle UNUSED, cudnnRNNDescriptor_t descriptor,
                                        cudnnForwardMode_t mode, cudnnRNNDataDescriptor_t data, size_t *work,
                                        size_t *reserve) {
  const struct rnn *rnn = (const struct rnn *)descriptor;
  const struct rnn_data *x = (const struct rnn_data *)data;
  size_t plane =
      type_size(rnn->type) * (size_t)x->steps * (size_t)x->batch * (size_t)rnn->hidden * (size_t)rnn->directions;
  *work = plane * (size_t)rnn->gates;
  if (reserve) *reserve = mode == CUDNN_FWD_MODE_TRAINING ? plane * (size_t)rnn->layers * (size_t)(rnn->gates + 2) : 0;
  return OK;
}
