import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

/** A running service, as the routes of `workbench.jupyter` describe it. Times are in seconds. */
export interface IService {
  process: string;
  name: string;
  models: string;
  state: string;
  replicas: number;
  uptime_s: number | null;
  idle_s: number | null;
  stops_in_s: number | null;
  dollars_per_hour: number | null;
}

/** A notebook of the workbench. Its path is relative to the server's folder. */
export interface INotebook {
  path: string;
  title: string;
}

const settings = ServerConnection.makeSettings();

async function request(path: string, method: string): Promise<Response> {
  const url = URLExt.join(settings.baseUrl, 'workbench', path);
  const response = await ServerConnection.makeRequest(url, { method }, settings);
  if (!response.ok) {
    throw await ServerConnection.ResponseError.create(response);
  }
  return response;
}

export async function listServices(): Promise<IService[]> {
  return (await (await request('services', 'GET')).json()).services;
}

export async function stopService(service: IService): Promise<void> {
  await request(`services/${service.process}/${service.name}`, 'DELETE');
}

export async function listNotebooks(): Promise<INotebook[]> {
  return (await (await request('notebooks', 'GET')).json()).notebooks;
}
